from typing import Any

import pytest
import torch
from helpers.lab_evaluator import words

from sdkernels.lab.sample import Sampled, sample
from sdkernels.lab.vocabulary import END, PAD, WAIT, encode

PROMPTS = [
    encode(words("solve 4 7 ; + 3 6 think")),
    encode(words("solve 9 9 ; * 7 ; * 2 ; - 1 0 think")),
    encode(words("solve 0 1 ; @ 3 think")),
]


def draw(model: Any, seed: int = 0, **settings: Any) -> list[Sampled]:
    generator = torch.Generator().manual_seed(seed)
    return sample(model, PROMPTS, generator=generator, **{"max_new_tokens": 40} | settings)


def test_a_seed_decides_the_responses(tiny_model: Any) -> None:
    assert draw(tiny_model) == draw(tiny_model)
    assert draw(tiny_model) != draw(tiny_model, seed=1)


def test_responses_are_drawn_from_a_plain_forward_pass(blank_model: Any) -> None:
    """Against one without cache, batch, padding, and dropping of finished rows."""
    with torch.no_grad():
        blank_model.lm_head.weight *= 10  # far from uniform, so that a wrong prefix shows
    drawn = [one for seed in range(4) for one in draw(blank_model, seed)]
    found = [*drawn, *draw(blank_model, temperature=1e-4)]
    assert len({len(one.ids) for one in found}) > 2, "rows should end at different times"
    for row, (prompt, one) in enumerate(zip(PROMPTS * 5, found, strict=True)):
        with torch.no_grad():
            logits = blank_model(torch.tensor([prompt + one.ids])).logits[0]
        logp_LV = logits[len(prompt) - 1 : -1].log_softmax(-1)
        entropy_L = -(logp_LV.exp() * logp_LV).sum(-1)
        assert one.entropy == pytest.approx(entropy_L.tolist(), abs=1e-4)
        logp_LV[:, PAD] = -torch.inf
        if row >= len(drawn):
            chosen_L = logp_LV.gather(-1, torch.tensor(one.ids).unsqueeze(-1)).squeeze(-1)
            assert (logp_LV.amax(-1) - chosen_L).max() < 2e-3  # ties at this temperature


def test_responses_end_with_end_or_are_truncated(tiny_model: Any) -> None:
    for one in draw(tiny_model, max_new_tokens=40):
        assert one.truncated == (END not in one.ids)
        assert one.ids.count(END) <= 1
        assert PAD not in one.ids
    cut = draw(tiny_model, max_new_tokens=3)
    assert [len(one.ids) for one in cut] == [3, 3, 3]
    assert all(one.truncated for one in cut)


def test_banned_words_never_come(blank_model: Any) -> None:
    free = [one for seed in range(3) for one in draw(blank_model, seed)]
    held = [one for seed in range(3) for one in draw(blank_model, seed, banned=[WAIT])]
    assert any(WAIT in one.ids for one in free)
    assert not any(WAIT in one.ids for one in held)


def test_temperature_changes_the_choice_but_not_the_entropy(tiny_model: Any) -> None:
    cold, warm = draw(tiny_model, temperature=0.05), draw(tiny_model)
    assert cold[0].ids != warm[0].ids
    assert cold[0].entropy[0] == pytest.approx(warm[0].entropy[0], abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0: expected a number > 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: expected at least 1"),
    ],
)
def test_impossible_settings_are_refused(blank_model: Any, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        draw(blank_model, **settings)
