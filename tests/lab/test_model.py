from pathlib import Path
from typing import Any

import pytest
import torch

from sdkernels.lab.model import Size, load, make, padded, response_hidden, save
from sdkernels.lab.vocabulary import PAD, WORDS

PROMPTS = [[3, 4, 5, 6], [7, 8], [9, 10, 11, 12, 13, 14, 15]]
RESPONSES = [[20, 21], [5, 6, 7, 8, 9, 10], [22]]


def test_the_default_has_a_million_parameters() -> None:
    count = sum(parameter.numel() for parameter in make(Size(), 0).parameters())
    assert 1_000_000 < count < 1_200_000


def test_hidden_states_are_those_that_predict_the_response(blank_model: Any) -> None:
    """Against one unpadded forward pass a row: alignment, padding and masks in one."""
    hidden_BLD = response_hidden(blank_model, PROMPTS, RESPONSES)
    ids_BL, mask_BL = padded(RESPONSES, "cpu")
    logp_BLV = blank_model.lm_head(hidden_BLD).log_softmax(-1)
    ours_BL = logp_BLV.gather(-1, ids_BL.unsqueeze(-1)).squeeze(-1)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        logits = blank_model(torch.tensor([prompt + response])).logits[0]
        for at, token in enumerate(response):
            expected = logits[len(prompt) - 1 + at].log_softmax(-1)[token]
            assert ours_BL[row, at].item() == pytest.approx(expected.item(), abs=1e-5)
        assert mask_BL[row].sum() == len(response)
        assert ids_BL[row, mask_BL[row]].tolist() == response
    assert (ids_BL[~mask_BL] == PAD).all()


def test_making_a_model_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (make(Size(16, 1, 2), seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_saving_and_loading_keeps_the_weights(blank_model: Any, tmp_path: Path) -> None:
    save(blank_model, tmp_path / "model")
    found = load(tmp_path / "model")
    assert not found.training
    assert found.lm_head.weight.shape[0] == len(WORDS)
    for ours, theirs in zip(blank_model.parameters(), found.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hidden=18: expected a multiple of 2 \* heads = 8"):
        Size(18, 1, 4)
