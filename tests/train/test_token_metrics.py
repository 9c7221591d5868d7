"""Statistics of a step's tokens against loops over tokens."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sdkernels.contexts import Example, Rollout
from sdkernels.train.batch import Row, collate
from sdkernels.train.step_metrics import StepMetrics
from sdkernels.train.token_kinds import KINDS, token_kind
from sdkernels.train.token_metrics import TokenMetrics, by_verdict, entropy_deciles

ALONE = SimpleNamespace(num_processes=1)
WORDS = [" 7", " wait", " buns", "+", " so"]
TOKENIZER = SimpleNamespace(all_special_ids=[], decode=lambda ids: WORDS[ids[0] % len(WORDS)])


def make_batch(lengths, verdicts, *, skip=0, seed=0, told=None):
    """`told`: which rows have a teacher's context; None for a step without a teacher."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    contexts = told or [False] * len(lengths)
    for length, verdict, has_context in zip(lengths, verdicts, contexts, strict=True):
        ids = torch.randint(0, 50, (length,), generator=generator).tolist()
        rollout = Rollout("a", 0, "", ids, success=verdict)
        counts = [at >= skip for at in range(length)]
        row = Row(Example("a", []), rollout, [1, 2], weights=[1.0] * length, counts=counts)
        row.teacher_prompt_ids = [3, 4] if has_context else None
        rows.append(row)
    return collate(rows, 0, torch.device("cpu"), with_teacher=told is not None)


def make_stats(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    names = ("logp", "teacher_logp", "entropy", "teacher_entropy", "kl_teacher_student")
    fields = {
        name: torch.rand(len(batch.keep_N), generator=generator) for name in (*names, "direction")
    }
    fields["direction"] = fields["direction"] * 2 - 1

    class Stats(dict):
        __getattr__ = dict.__getitem__

    return Stats(fields)


def taken(batches, stats):
    metrics = StepMetrics()
    tokens = TokenMetrics(metrics, TOKENIZER)
    for batch, fields in zip(batches, stats, strict=True):
        tokens.add(batch, fields)
    return metrics.take(ALONE)


def loop_deciles(batch, value_N):
    """Deciles by sorting each response on its own; those of fewer than ten tokens have none."""
    found = {}
    for row in range(len(batch.rows)):
        mine = [n for n in range(len(value_N)) if batch.row_N[n] == row and batch.keep_N[n]]
        ranked = sorted(mine, key=lambda n: (float(value_N[n]), n))
        if len(mine) >= 10:
            found |= {n: int((rank + 0.5) / len(mine) * 10) for rank, n in enumerate(ranked)}
    return found


@pytest.mark.parametrize("skip", [0, 2])
def test_deciles_are_those_of_each_response(skip):
    batch = make_batch([23, 4, 41, 10], [True, False, None, True], skip=skip)
    entropy_N = torch.rand(len(batch.keep_N)).round(decimals=1)  # with ties
    deciles = entropy_deciles(entropy_N, batch)
    expected = loop_deciles(batch, entropy_N)
    for n, decile in enumerate(deciles.tolist()):
        assert decile == expected.get(n, 10)


@pytest.mark.parametrize("length", range(1, 42))
def test_every_tenth_has_its_share_of_a_response_or_none(length):
    batch = make_batch([length], [True])
    deciles = entropy_deciles(torch.rand(length), batch)
    sizes = torch.bincount(deciles, minlength=11).tolist()
    if length < 10:
        assert sizes == [0] * 10 + [length]
        return
    assert sizes[10] == 0
    assert max(sizes[:10]) - min(sizes[:10]) <= 1
    assert sizes[9] == sizes[0] or length % 10 == 5  # there a token stands on the edge


def test_responses_too_short_for_tenths_are_counted():
    batches = [make_batch([9, 10], [True, False]), make_batch([4, 12, 1], [None] * 3, skip=3)]
    values = taken(batches, [make_stats(batch) for batch in batches])
    # Of 4 one counts, of 12 nine, and of 1 none: that is no response.
    assert values["short_response_share"] == 3 / 4
    alone = taken(batches[1:], [make_stats(batches[1])])
    assert alone["gap_by_entropy_decile"] is alone["entropy_top20"] is None
    assert alone["short_response_share"] == 1.0
    kept = make_batch([10], [False])
    fields = make_stats(batches[0])
    long = {name: value[9:] for name, value in fields.items()}
    for name in ("entropy_by_entropy_decile", "gap_by_entropy_decile", "entropy_top20"):
        assert taken([kept], [type(fields)(long)])[name] == taken(batches[:1], [fields])[name]


@pytest.mark.parametrize("told", [None, [True, False, True, True]], ids=["bare", "told"])
def test_values_are_those_of_a_loop_over_tokens(told):
    """Of the teacher over the tokens of rows where it has a context, of the student over all."""
    batches = [
        make_batch([12, 30, 14], [True, False, False], told=told and told[:3]),
        make_batch([25], [None], skip=3, seed=1, told=told and told[3:]),
    ]
    stats = [make_stats(batch, seed) for seed, batch in enumerate(batches)]
    sums: dict[str, list[float]] = {}

    def note(name, value):
        sums.setdefault(name, []).append(float(value))

    size = 0
    for batch, fields in zip(batches, stats, strict=True):
        low, high = (loop_deciles(batch, fields[f"{who}entropy"]) for who in ("", "teacher_"))
        ids = [token for row in batch.rows for token in row.response_ids]
        for n in range(len(ids)):
            if not batch.keep_N[n]:
                continue
            gap = fields["teacher_logp"][n] - fields["logp"][n]
            kind = KINDS[token_kind(WORDS[ids[n] % len(WORDS)])]
            row = batch.rows[batch.row_N[n]]
            verdict = row.rollout.success
            size += 1
            note("entropy", fields["entropy"][n])
            for name in KINDS:
                note(f"{name}_share", name == kind)
            if low[n] >= 8:
                note("entropy_top20", fields["entropy"][n])
            note(f"entropy_by_entropy_decile {low[n]}", fields["entropy"][n])
            if told and row.teacher_prompt_ids is None:
                continue
            for name in ("kl_teacher_student", "teacher_entropy", "direction"):
                note(name, fields[name][n])
            note("gap", gap)
            note("gap_abs", abs(gap))
            note("gap_negative_share", gap < 0)
            note("push_share", fields["direction"][n] < 0)
            note(f"kl_{kind}", fields["kl_teacher_student"][n])
            note(f"gap_abs_{kind}", abs(gap))
            if verdict is not None:
                note(f"gap_{'correct' if verdict else 'wrong'}", gap)
                note(f"gap_negative_share_{'correct' if verdict else 'wrong'}", gap < 0)
            if high[n] >= 8:
                note("teacher_entropy_top20", fields["teacher_entropy"][n])
            note(f"gap_by_entropy_decile {low[n]}", gap)
            note(f"direction_by_entropy_decile {low[n]}", fields["direction"][n])
    values = taken(batches, stats)
    for name, entries in sums.items():
        key, _, at = name.partition(" ")
        found = values[key][int(at)] if at else values[key]
        assert found == pytest.approx(sum(entries) / len(entries), rel=1e-5), name
    assert values["num_tokens"] == size == 78
    assert len(sums["gap"]) == (48 if told else 78)
    means = values["entropy_by_entropy_decile"]
    assert means == sorted(means)


def test_micro_batches_do_not_change_the_result():
    whole = make_batch([12, 30], [True, False])
    fields = make_stats(whole)
    first = {name: value[:12] for name, value in fields.items()}
    second = {name: value[12:] for name, value in fields.items()}
    parts = [collate([row], 0, torch.device("cpu"), with_teacher=False) for row in whole.rows]
    split = taken(parts, [type(fields)(first), type(fields)(second)])
    for name, value in taken([whole], [fields]).items():
        if value is None:
            assert split[name] is None
        else:
            assert split[name] == pytest.approx(value, rel=1e-5), name


def test_without_teacher_and_gate_their_values_are_none():
    batch = make_batch([20], [True])
    fields = make_stats(batch)
    values = taken([batch], [type(fields)(logp=fields["logp"], entropy=fields["entropy"])])
    for name in ("gap", "gap_correct", "kl_math", "teacher_entropy_top20", "push_share"):
        assert values[name] is None
    assert values["gap_by_entropy_decile"] is None
    assert values["direction_by_entropy_decile"] is None
    assert values["entropy_top20"] > values["entropy"]
    assert values["math_share"] is not None


def test_left_out_tokens_may_hold_anything():
    batch = make_batch([20], [True], skip=5)
    fields = make_stats(batch)
    spoiled = {n: torch.where(batch.keep_N, v, torch.nan) for n, v in fields.items()}
    assert taken([batch], [type(fields)(spoiled)]) == taken([batch], [fields])


def test_unjudged_rollouts_are_neither_correct_nor_wrong():
    masks = by_verdict(make_batch([2, 3, 4], [True, None, False]))
    assert masks["correct"].tolist() == [True] * 2 + [False] * 7
    assert masks["wrong"].tolist() == [False] * 5 + [True] * 4


def test_what_a_teacher_without_a_context_says_is_not_counted():
    """With a verifier's advantage its tokens are in the loss all the same."""
    batch = make_batch([12, 14], [True, True], told=[True, False])
    fields = make_stats(batch)
    unknown = torch.where(batch.row_N == 1, torch.nan, 1.0)
    spoiled = {n: v * unknown for n, v in fields.items() if n not in ("entropy", "logp")}
    assert taken([batch], [type(fields)(fields | spoiled)]) == taken([batch], [fields])


def test_a_response_without_a_token_is_not_a_long_one():
    batches = [make_batch([5], [True]), make_batch([5], [True], skip=5)]
    values = taken(batches, [make_stats(batch) for batch in batches])
    assert values["short_response_share"] == 1.0
