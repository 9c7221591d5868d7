"""Generation: exact ids, seeds, modes, limits."""

from __future__ import annotations

import functools

import pytest
import torch

from sdkernels.train.rollout import (
    Sampling,
    TransformersRollout,
    derived_seed,
    pad_left,
    stop_token_ids,
)


@pytest.fixture
def prompts(tokenizer):
    return [tokenizer(text)["input_ids"] for text in ("one", "a longer prompt", "mid size")]


def test_the_same_seed_gives_the_same_samples(make_model, tokenizer, prompts):
    rollout = TransformersRollout(make_model, tokenizer)
    first = rollout.generate(prompts, 3, Sampling(max_new_tokens=12), seed=5)
    assert rollout.generate(prompts, 3, Sampling(max_new_tokens=12), seed=5) == first
    assert rollout.generate(prompts, 3, Sampling(max_new_tokens=12), seed=6) != first
    assert [len(group) for group in first] == [3, 3, 3]


def test_training_is_left_as_it_was(make_model, tokenizer, prompts):
    model = make_model().train()
    config = model.generation_config
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    TransformersRollout(lambda: model, tokenizer).generate(
        prompts, 1, Sampling(max_new_tokens=4), seed=5
    )
    assert torch.equal(torch.rand(3), expected)  # sampling has its own random state
    assert model.training
    assert model.generation_config is config
    assert all(parameter.grad is None for parameter in model.parameters())


def test_samples_are_what_the_model_says(make_model, tokenizer, prompts):
    """Greedy samples against an argmax loop over full forward passes, one prompt at a time."""
    model = make_model().eval()
    groups = TransformersRollout(lambda: model, tokenizer).generate(
        prompts, 1, Sampling(max_new_tokens=10, temperature=0), seed=0
    )
    for prompt, (sample,) in zip(prompts, groups, strict=True):
        ids = list(prompt)
        for _ in range(10):
            with torch.no_grad():
                token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)
            if token == tokenizer.eos_token_id:
                break
        assert sample.token_ids == ids[len(prompt) :]


def test_frequencies_follow_the_distribution(make_model, tokenizer):
    model = make_model(initializer_range=0.3).eval()
    prompt = tokenizer("x")["input_ids"]
    with torch.no_grad():
        probabilities = model(torch.tensor([prompt])).logits[0, -1].div(0.8).softmax(-1)
    (group,) = TransformersRollout(lambda: model, tokenizer).generate(
        [prompt], 4000, Sampling(max_new_tokens=1, temperature=0.8), seed=3
    )
    counts = torch.zeros(len(tokenizer))
    for sample in group:
        counts[sample.token_ids[0]] += 1
    top = probabilities.topk(5).indices
    deviation = (counts[top] / 4000 - probabilities[top]).abs()
    assert bool((deviation < 4 * (probabilities[top] / 4000).sqrt()).all())


class Scripted:
    """A stand-in for `generate` that ends sequences where we say."""

    def __init__(self, model, rows):
        self.model, self.rows = model, rows

    def __call__(self, input_ids, **_):
        width = max(map(len, self.rows))
        pad = self.model.generation_config.pad_token_id
        padded = [row + [pad] * (width - len(row)) for row in self.rows]
        return torch.cat([input_ids, torch.tensor(padded)], dim=1)


def test_ends_and_padding(make_model, tokenizer, monkeypatch):
    """The end-of-turn id stays, what follows goes, and a row without one is truncated."""
    model = make_model()
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    words = tokenizer("hey")["input_ids"]
    monkeypatch.setattr(
        type(model),
        "generate",
        lambda self, input_ids, **kw: Scripted(self, [[*words, end, pad, pad], [*words, *words]])(
            input_ids
        ),
    )
    ((first, second),) = TransformersRollout(lambda: model, tokenizer).generate(
        [words], 2, Sampling(max_new_tokens=6), seed=0
    )
    assert (first.token_ids, first.text, first.truncated) == ([*words, end], "hey", False)
    assert (second.token_ids, second.truncated) == ([*words, *words], True)


def test_an_end_token_that_is_also_the_padding(make_model, tokenizer, monkeypatch):
    import copy

    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    model = make_model()
    words, end = tokenizer("hey")["input_ids"], tokenizer.eos_token_id
    monkeypatch.setattr(
        type(model),
        "generate",
        lambda self, input_ids, **kw: Scripted(self, [[*words, end, end, end]])(input_ids),
    )
    ((sample,),) = TransformersRollout(lambda: model, tokenizer).generate(
        [words], 1, Sampling(max_new_tokens=6), seed=0
    )
    assert sample.token_ids == [*words, end]


def test_settings_of_the_checkpoint_do_not_leak_in(make_model, tokenizer, prompts, monkeypatch):
    """Hub checkpoints bring top-k, penalties and limits of their own."""
    model = make_model()
    for name, value in {
        "top_k": 1,
        "min_p": 0.9,
        "no_repeat_ngram_size": 1,
        "num_beams": 3,
    }.items():
        setattr(model.generation_config, name, value)
    plain = make_model()
    sampling = Sampling(max_new_tokens=8)
    ours = TransformersRollout(lambda: model, tokenizer).generate(prompts, 2, sampling, seed=1)
    theirs = TransformersRollout(lambda: plain, tokenizer).generate(prompts, 2, sampling, seed=1)
    assert ours == theirs


def test_all_ends_of_turn_are_known(make_model, tokenizer):
    model = make_model()
    model.generation_config.eos_token_id = [7, 9]
    assert stop_token_ids(model, tokenizer) == sorted({7, 9, tokenizer.eos_token_id})


def test_a_group_shares_the_prompt_and_nothing_else(make_model, tokenizer, prompts, monkeypatch):
    """The prompt is read once a group; its rows are those of a generation without sharing."""
    model = make_model().eval()
    forwarded = []
    original = type(model).forward

    @functools.wraps(original)  # generation looks at the signature
    def counted(self, *args, **settings):
        forwarded.append(settings["input_ids"].shape)
        return original(self, *args, **settings)

    monkeypatch.setattr(type(model), "forward", counted)
    rollout = TransformersRollout(lambda: model, tokenizer)
    greedy = Sampling(max_new_tokens=6, temperature=0)
    shared = rollout.generate(prompts, 4, greedy, seed=0)
    width = max(map(len, prompts))
    assert forwarded[:2] == [(3, width - 1), (12, 1)]
    alone = rollout.generate(prompts, 1, greedy, seed=0)
    for group, (expected,) in zip(shared, alone, strict=True):
        assert all(sample == expected for sample in group)
    # A prompt of one token has nothing to share.
    rollout.generate([[5], [6]], 2, greedy, seed=0)


def test_batches_are_limited(make_model, tokenizer, prompts, monkeypatch):
    model = make_model()
    sizes = []
    original = type(model).generate

    def counted(self, **settings):
        sizes.append(settings["input_ids"].shape[0])
        return original(self, **settings)

    monkeypatch.setattr(type(model), "generate", counted)
    rollout = TransformersRollout(lambda: model, tokenizer, batch_size=4)
    groups = rollout.generate(prompts, 3, Sampling(max_new_tokens=2), seed=0)
    assert sizes == [4, 4, 1]
    assert [len(group) for group in groups] == [3, 3, 3]
    with pytest.raises(ValueError, match="rollout_batch_size=0"):
        TransformersRollout(lambda: model, tokenizer, batch_size=0)


def test_a_rollout_can_be_abandoned(make_model, tokenizer, prompts):
    class EnoughError(Exception):
        pass

    tokens = []

    def stop() -> None:
        tokens.append(1)
        if len(tokens) == 3:
            raise EnoughError

    model = make_model().train()
    rollout = TransformersRollout(lambda: model, tokenizer, should_stop=stop)
    with pytest.raises(EnoughError):
        rollout.generate(prompts, 1, Sampling(max_new_tokens=50), seed=0)
    assert len(tokens) == 3
    assert model.training


def test_padding_on_the_left():
    ids, mask = pad_left([[1, 2, 3], [4]], 9, torch.device("cpu"))
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_seeds_differ_by_every_part():
    seeds = {derived_seed(1, "rollout", step, rank) for step in range(50) for rank in range(4)}
    assert len(seeds) == 200
    assert derived_seed(1, "a") == derived_seed(1, "a")
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
    ],
)
def test_sampling_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r}: expected"):
        Sampling(**{name: value})
