"""Which examples of a data set a student should be trained on, judged by the student itself.

Instruction-following difficulty IFD(y | x) = ppl(y | x) / ppl(y) is near 1 where the prompt does
not help the student to the response, and r-IFD(x | y) = ppl(x | y') / ppl(x) is low where the
response tells what was asked; y' wraps the response in a request to guess the instruction
(Selective Reflection-Tuning, 2402.10110). Perplexities are over the engine's log-probs; no logits
are kept. Both sides of a ratio are means over the same tokens: all but the first, which has nothing
before it when the text stands alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch

from sdkernels.contexts import Example, Rollout
from sdkernels.engine import LMHead
from sdkernels.ops import linear_logprob
from sdkernels.train.batch import Row, collate
from sdkernels.train.forward import hidden_states
from sdkernels.train.loading import context_window
from sdkernels.train.prompts import PromptEncoder, where
from sdkernels.train.sides import padding_id

SCORES = ("ifd", "r_ifd")
BATCH_ROWS = 8
GUESS_THE_INSTRUCTION = (
    "Below is the response of an assistant. Write the instruction it most likely answers.\n\n"
    "Response:\n{response}\n\nInstruction:"
)


def why_unscorable(model: Any, encoder: PromptEncoder, example: Example, by: str) -> str | None:
    """What an example has that `score` refuses, in words, or None.

    A text of one token has nothing before it to be measured by, and beyond the model's window a
    perplexity says nothing.

    Raises:
        ValueError: the example has no response.
    """
    prompt_ids, text_ids = _encoded(encoder, example, by)
    if len(text_ids) < 2:
        return f"a text of one token, which has no {by}"
    window = context_window(model)
    if window is not None and len(prompt_ids) + len(text_ids) > window:
        return f"prompt and text longer than the model's window of {window} tokens"
    return None


def _encoded(encoder: PromptEncoder, example: Example, by: str) -> tuple[list[int], list[int]]:
    """Ids of the prompt, and of the text that is scored after it."""
    if not example.solution:
        raise ValueError(f"{where(example)}: it has no `solution`, which is scored")
    if by == "ifd":
        prompt, text = example.prompt, example.solution
    else:
        wrapped = GUESS_THE_INSTRUCTION.format(response=example.solution)
        prompt, text = [{"role": "user", "content": wrapped}], example.prompt[-1]["content"]
    text_ids = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    return encoder.ids(prompt), list(text_ids)


def score(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    by: str = "ifd",
    *,
    template_kwargs: dict[str, Any] | None = None,
) -> list[float]:
    """IFD or r-IFD of every example, its `solution` being the response.

    Args:
        model: causal language model, the student; its mode is left as it is.
        by: "ifd" or "r_ifd".

    Returns:
        A ratio of perplexities for each example, above 0.

    Raises:
        ValueError: an unknown score, or an example without a response, with a text of one
            token or beyond the model's window (`why_unscorable`).
    """
    if by not in SCORES:
        raise ValueError(f"by={by!r}: expected one of {', '.join(SCORES)}")
    encoder = PromptEncoder(tokenizer, template_kwargs)
    told, alone = [], []
    for example in examples:
        if reason := why_unscorable(model, encoder, example, by):
            raise ValueError(f"{where(example)}: it has {reason}; leave it out")
        prompt_ids, ids = _encoded(encoder, example, by)
        told.append(([*prompt_ids, ids[0]], ids[1:]))
        alone.append((ids[:1], ids[1:]))
    with_prompt = mean_nll(model, tokenizer, told)
    without = mean_nll(model, tokenizer, alone)
    return [math.exp(a - b) for a, b in zip(with_prompt, without, strict=True)]


@torch.no_grad()
def mean_nll(
    model: Any, tokenizer: Any, sequences: Sequence[tuple[list[int], list[int]]]
) -> list[float]:
    """Mean of -log S over the second ids of each pair, given the first; nats a token."""
    rows = []
    for number, (prompt, response) in enumerate(sequences):
        example = Example(id=str(number), prompt=[])
        rollout = Rollout(str(number), 0, "", response)
        kept = [True] * len(response)
        rows.append(Row(example, rollout, prompt, weights=[1.0] * len(kept), counts=kept))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt_ids + rows[i].response_ids))
    means = [0.0] * len(rows)
    was_training = model.training
    model.eval()
    try:
        device = next(model.parameters()).device
        for start in range(0, len(order), BATCH_ROWS):
            places = order[start : start + BATCH_ROWS]
            used = [rows[i] for i in places]
            batch = collate(used, padding_id(tokenizer), device, with_teacher=False)
            hidden_ND = hidden_states(model, batch.student)
            logp_N = linear_logprob(hidden_ND, LMHead.from_model(model), batch.target_N)
            assert isinstance(logp_N, torch.Tensor)
            totals = batch.unpack(-logp_N.double()).sum(dim=1).tolist()
            for place, row, total in zip(places, used, totals, strict=True):
                means[place] = total / len(row.response_ids)
    finally:
        model.train(was_training)
    return means


def check_keep(keep: float) -> None:
    """Refuse a share outside (0, 1]."""
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep}: expected a share above 0, at most 1")


def best_share(
    examples: Sequence[Example],
    scores: Sequence[float],
    by: str,
    *,
    keep: float,
    highest_allowed: float | None = None,
) -> list[Example]:
    """The share of examples that a score prefers: the highest IFD, or the lowest r-IFD.

    Args:
        keep: share of all examples in (0, 1]; at least one is kept.
        highest_allowed: leave out scores above it first. An IFD above 1 says that the prompt makes
            the response less likely, which the authors of IFD take for a mismatch.

    Returns:
        The kept examples in their old order.
    """
    check_keep(keep)
    places = [i for i, s in enumerate(scores) if highest_allowed is None or s <= highest_allowed]
    places.sort(key=lambda i: (-scores[i] if by == "ifd" else scores[i], i))
    chosen = set(places[: max(1, round(keep * len(examples)))])
    return [example for i, example in enumerate(examples) if i in chosen]


def check_versions(first: Sequence[Example], second: Sequence[Example]) -> None:
    """Refuse two versions of a data set that are not the same ids in the same order."""
    ids = [[example.id for example in version] for version in (first, second)]
    if ids[0] != ids[1]:
        odd = next((a, b) for a, b in zip_longest(*ids) if a != b)
        raise ValueError(
            f"the two versions must have the same ids in the same order; they differ at {odd[0]!r} "
            f"and {odd[1]!r}"
        )


def choose_versions(
    first: Sequence[Example],
    second: Sequence[Example],
    first_scores: Sequence[float],
    second_scores: Sequence[float],
    by: str,
    *,
    only_second: bool = False,
) -> list[Example]:
    """For each id the version that the student prefers: argmax of IFD, or argmin of r-IFD.

    Args:
        first, second: two versions of a data set with the same ids, such as the original and what a
            teacher made of it.
        only_second: drop ids for which the first version wins (Selective Reflection-Tuning drops
            what its second phase did not improve).

    Raises:
        ValueError: the ids differ.
    """
    check_versions(first, second)
    sign = 1 if by == "ifd" else -1
    chosen = []
    for a, b, score_a, score_b in zip(first, second, first_scores, second_scores, strict=True):
        if sign * score_b > sign * score_a:
            chosen.append(b)
        elif not only_second:
            chosen.append(a)
    return chosen
