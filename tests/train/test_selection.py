"""IFD and r-IFD from the definition, and what is chosen by them."""

import math

import pytest
import torch
from helpers.tiny_models import byte_tokenizer

from sdkernels.train.prompts import PromptEncoder
from sdkernels.train.selection import (
    GUESS_THE_INSTRUCTION,
    best_share,
    choose_versions,
    mean_nll,
    score,
    why_unscorable,
)


def perplexity_by_hand(model, prompt, text):
    """Of all tokens of `text` but the first, from materialised logits in float64."""
    logits = model.double()(torch.tensor([prompt + text])).logits[0]
    logp = logits.log_softmax(-1)
    at = range(len(prompt), len(prompt) + len(text) - 1)
    return math.exp(-sum(logp[i, t].item() for i, t in zip(at, text[1:], strict=True)) / len(at))


@pytest.mark.parametrize("by", ["ifd", "r_ifd"])
def test_scores_are_ratios_of_perplexities(by, make_model, tokenizer, make_problems):
    model, examples = make_model(seed=1), make_problems(11)
    found = score(model, tokenizer, examples, by)
    assert len(set(found)) == 11
    for example, ratio in zip(examples, found, strict=True):
        asked = example.prompt[0]["content"]
        if by == "ifd":
            content, text = asked, example.solution
        else:
            content, text = GUESS_THE_INSTRUCTION.format(response=example.solution), asked
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, return_dict=False
        )
        ids = tokenizer(text)["input_ids"]
        reference = make_model(seed=1)
        wanted = perplexity_by_hand(reference, prompt, ids) / perplexity_by_hand(reference, [], ids)
        assert ratio == pytest.approx(wanted, rel=1e-5)


def test_scoring_leaves_the_model_as_it_was(make_model, tokenizer):
    model = make_model().train()
    mean_nll(model, tokenizer, [([5], [6, 7])])
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_tokenizer_without_a_padding_token(make_model, tokenizer, make_problems):
    model, examples = make_model(seed=1), make_problems(5)
    expected = score(model, tokenizer, examples)
    without = byte_tokenizer()
    without.pad_token = None
    assert score(model, without, examples) == expected


def test_a_prompt_that_gives_the_answer_away_scores_low(make_model, tokenizer, make_problems):
    """A model trained to repeat its prompt: IFD falls where the prompt holds the response."""
    torch.manual_seed(0)
    model = make_model(seed=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        half = torch.randint(3, 40, (16, 6))
        ids = torch.cat([half, half], dim=1)
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    half = torch.randint(3, 40, (6,)).tolist()
    other = torch.randint(3, 40, (6,)).tolist()
    told, mistold, alone = mean_nll(
        model,
        tokenizer,
        [([*half, half[0]], half[1:]), ([*other, half[0]], half[1:]), ([half[0]], half[1:])],
    )
    assert told < min(mistold, alone)


@pytest.mark.parametrize(
    ("by", "keep", "highest", "kept"),
    [
        ("ifd", 0.5, None, [1, 3]),
        ("r_ifd", 0.5, None, [0, 2]),
        ("ifd", 0.5, 1.0, [2, 3]),
        ("ifd", 1.0, 1.0, [0, 2, 3]),
        ("ifd", 0.01, None, [1]),
        ("ifd", 1.0, 0.01, []),
    ],
)
def test_the_preferred_share(by, keep, highest, kept, make_problems):
    examples = make_problems(4)
    chosen = best_share(examples, [0.2, 1.7, 0.4, 0.9], by, keep=keep, highest_allowed=highest)
    assert [examples.index(example) for example in chosen] == kept


def test_the_better_version_of_each_example(make_problems):
    first, second = make_problems(3), make_problems(3)
    a, b = [0.5, 0.9, 0.7], [0.6, 0.8, 0.7]

    def won(by, **settings):
        chosen = choose_versions(first, second, a, b, by, **settings)
        return [any(example is other for other in second) for example in chosen]

    assert won("ifd") == [True, False, False]
    assert won("r_ifd") == [False, True, False]
    assert won("r_ifd", only_second=True) == [True]


@pytest.mark.parametrize(
    ("cut", "message"), [(slice(0, 2), "'add-2' and None"), (slice(1, 4), "'add-0' and 'add-1'")]
)
def test_versions_of_other_examples_are_refused(cut, message, make_problems):
    first = make_problems(3)
    second = make_problems(4)[cut]
    with pytest.raises(ValueError, match=message):
        choose_versions(first, second, [1.0] * 3, [1.0] * len(second), "ifd")


@pytest.mark.parametrize("by", ["ifd", "r_ifd"])
def test_beyond_the_window_there_is_no_score(by, make_model, tokenizer, make_problems):
    (example,) = make_problems(1)
    prompt = example.prompt
    if by == "r_ifd":
        wrapped = GUESS_THE_INSTRUCTION.format(response=example.solution)
        prompt = [{"role": "user", "content": wrapped}]
    encoder = PromptEncoder(tokenizer)
    text = example.solution if by == "ifd" else example.prompt[0]["content"]
    needed = len(encoder.ids(prompt)) + len(tokenizer(text)["input_ids"])
    fits = make_model(seed=1, max_position_embeddings=needed)
    assert why_unscorable(fits, encoder, example, by) is None
    assert score(fits, tokenizer, [example], by) == pytest.approx(
        score(make_model(seed=1), tokenizer, [example], by)
    )
    short = make_model(seed=1, max_position_embeddings=needed - 1)
    with pytest.raises(ValueError, match=f"'add-0'.* model's window of {needed - 1} tokens"):
        score(short, tokenizer, [example], by)


def test_a_model_that_names_no_window_scores_all(make_model, tokenizer, make_problems):
    model, (example,) = make_model(), make_problems(1)
    del model.config.max_position_embeddings
    assert why_unscorable(model, PromptEncoder(tokenizer), example, "ifd") is None


def test_bad_input(make_model, tokenizer, make_problems):
    model, (example,) = make_model(), make_problems(1)
    with pytest.raises(ValueError, match="by='idf': expected one of ifd, r_ifd"):
        score(model, tokenizer, [example], "idf")
    with pytest.raises(ValueError, match="keep=0: expected a share"):
        best_share([example], [1.0], "ifd", keep=0)
    from dataclasses import replace

    with pytest.raises(ValueError, match=r"'add-0' \(row 1\): it has a text of one token"):
        score(model, tokenizer, [replace(example, solution="x")])
    with pytest.raises(ValueError, match="no `solution`"):
        score(model, tokenizer, [replace(example, solution=None)])
