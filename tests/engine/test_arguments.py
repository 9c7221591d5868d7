"""Wrong arguments: each gets an error that names it, what came, what is accepted and what to do."""

import re
from typing import Any

import numpy as np
import pytest
import torch

import sdkernels as sd
from sdkernels.gates import EntropySign

B, L, D, V = 2, 3, 4, 9
HIDDEN = torch.randn(B, L, D, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(V, D, generator=torch.Generator().manual_seed(1))
LOGITS = torch.randn(B, L, V, generator=torch.Generator().manual_seed(2))
IDS = torch.arange(B * L).reshape(B, L)
TOPK = sd.TopKTeacher(IDS[..., None], torch.full((B, L, 1), -1.0))

CASES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "hidden_type": ({"hidden": [1.0]}, TypeError, "hidden: expected a tensor [..., D], got list"),
    "hidden_dtype": (
        {"hidden": HIDDEN.long()},
        TypeError,
        "hidden has dtype torch.int64: accepted",
    ),
    "hidden_scalar": (
        {"hidden": HIDDEN[0, 0, 0]},
        ValueError,
        "expected [..., D] with D = 4 of the",
    ),
    "hidden_size": ({"hidden": HIDDEN[..., :3]}, ValueError, "D = 4 of the head, got [2, 3, 3]"),
    "head_type": (
        {"head": "lm_head"},
        TypeError,
        "head: expected an LMHead, a weight tensor [V, D]",
    ),
    "targets_float": (
        {"targets": IDS.float()},
        TypeError,
        "int64 or int32 token ids, got torch.flo",
    ),
    "targets_list": ({"targets": [[0] * L] * B}, TypeError, "int64 or int32 token ids, got list"),
    "targets_shape": (
        {"targets": IDS[:, :2]},
        ValueError,
        "expected shape [2, 3], or [2, 3, 'K'] for K ids a token, got [2, 2]",
    ),
    "targets_flat": ({"targets": IDS.flatten()}, ValueError, "got [6]"),
    "targets_high": (
        {"targets": IDS + 4},
        ValueError,
        "id 9 (token 5 of those kept) is outside the vocabulary 0..8; leave padding such as -100",
    ),
    "targets_padding": (
        {"targets": IDS.masked_fill(IDS == 3, -100)},
        ValueError,
        "id -100 (token 3",
    ),
    "targets_behind_valid_vocab": (
        {"head": sd.LMHead(WEIGHT, valid_vocab=5), "targets": IDS},
        ValueError,
        "outside the vocabulary 0..4",
    ),
    "mask_dtype": (
        {"mask": torch.ones(B, L)},
        TypeError,
        "mask: expected a bool tensor of shape [2",
    ),
    "mask_list": ({"mask": [[True] * L] * B}, TypeError, "mask: expected a bool tensor"),
    "mask_shape": (
        {"mask": torch.ones(B, L, 1, dtype=torch.bool)},
        ValueError,
        "mask: expected shape [2, 3] (that of the tokens), got [2, 3, 1]",
    ),
    "teacher_type": (
        {"teacher": LOGITS},
        TypeError,
        "expected a HiddenTeacher, LogitsTeacher or To",
    ),
    "teacher_tokens": (
        {"teacher": sd.LogitsTeacher(LOGITS[:, :2])},
        ValueError,
        "teacher: tokens of shape [2, 2], the student's are [2, 3]; both must describe the same",
    ),
    "vocabulary_of_logits": (
        {"teacher": sd.LogitsTeacher(LOGITS[..., :7])},
        ValueError,
        "vocabulary mismatch: student 9, teacher 7. If the tokenizers are the same and the rest is "
        "padding, pass the number of real entries as valid_vocab= on both heads",
    ),
    "vocabulary_of_hidden": (
        {"teacher": sd.HiddenTeacher(HIDDEN, torch.randn(11, D))},
        ValueError,
        "vocabulary mismatch: student 9, teacher 11",
    ),
    "vocabulary_of_ids": (
        {"teacher": sd.TopKTeacher(IDS[..., None] + 7, torch.full((B, L, 1), -1.0))},
        ValueError,
        "teacher.ids: ids span 7..12, the student's vocabulary is 0..8",
    ),
    "temperature_zero": ({"temperature": 0}, ValueError, "temperature=0: expected a finite number"),
    "temperature_negative": (
        {"temperature": -1.0},
        ValueError,
        "temperature=-1.0: expected a finit",
    ),
    "temperature_nan": (
        {"temperature": float("nan")},
        ValueError,
        "temperature=nan: expected a fin",
    ),
    "temperature_inf": (
        {"temperature": float("inf")},
        ValueError,
        "temperature=inf: expected a fin",
    ),
    "temperature_tensor": (
        {"temperature": torch.tensor(2.0)},
        ValueError,
        "temperature=tensor(2.)",
    ),
    "temperature_bool": (
        {"temperature": True},
        ValueError,
        "temperature=True: expected a finite n",
    ),
    "teacher_temperature": (
        {"teacher_temperature": 0.0},
        ValueError,
        "teacher_temperature=0.0: exp",
    ),
    "teacher_temperature_of_a_list": (
        {"teacher": TOPK, "teacher_temperature": 2.0},
        ValueError,
        "log-probs of a TopKTeacher are taken as they are; ask the server for log-probs at that",
    ),
    "jsd_beta_without_teacher": ({"jsd_beta": 0.5}, ValueError, "jsd_beta=0.5 needs a teacher="),
    "entry_clip_without_teacher": (
        {"entry_clip": 0.1},
        ValueError,
        "entry_clip=0.1 needs a teacher",
    ),
    "jsd_beta_zero": (
        {"teacher": sd.LogitsTeacher(LOGITS), "jsd_beta": 0},
        ValueError,
        "jsd_beta=0: expected a number strictly between 0 and 1",
    ),
    "jsd_beta_nan": (
        {"teacher": sd.LogitsTeacher(LOGITS), "jsd_beta": float("nan")},
        ValueError,
        "jsd_beta=nan: expected a number strictly between",
    ),
    "entry_clip_zero": (
        {"teacher": sd.LogitsTeacher(LOGITS), "entry_clip": 0.0},
        ValueError,
        "entry_clip=0.0: expected a number above 0, in nats per vocabulary entry",
    ),
    "topk_zero": ({"topk": 0}, ValueError, "topk=0: expected a whole number from 1 to V = 9"),
    "topk_large": ({"topk": 10}, ValueError, "topk=10: expected a whole number from 1 to V = 9"),
    "topk_float": ({"topk": 3.0}, ValueError, "topk=3.0: expected a whole number from 1 to V = 9"),
    "topk_with_a_list": (
        {"teacher": TOPK, "topk": 3},
        ValueError,
        "topk=3: a TopKTeacher brings its own ids; leave topk out",
    ),
    "topk_of": (
        {"topk": 3, "topk_of": "both"},
        ValueError,
        "topk_of='both': accepted are 'student'",
    ),
    "topk_of_nobody": (
        {"topk": 3, "topk_of": "teacher"},
        ValueError,
        "topk_of='teacher' needs a teacher=",
    ),
    "chunk_bytes_zero": (
        {"chunk_bytes": 0},
        ValueError,
        "chunk_bytes=0: expected a number of bytes",
    ),
    "chunk_bytes_negative": (
        {"chunk_bytes": -8},
        ValueError,
        "chunk_bytes=-8: expected a number of",
    ),
    "chunk_bytes_float": (
        {"chunk_bytes": 1e9},
        TypeError,
        "chunk_bytes=1000000000.0: expected a who",
    ),
    "chunk_bytes_nan": (
        {"chunk_bytes": float("nan")},
        TypeError,
        "chunk_bytes=nan: expected a whole",
    ),
    "chunk_bytes_text": (
        {"chunk_bytes": "1GB"},
        TypeError,
        "chunk_bytes='1GB': expected a whole num",
    ),
    "slab_dtype": (
        {"slab_dtype": "bf16"},
        ValueError,
        "slab_dtype='bf16': accepted are 'float32' and",
    ),
    "backend": (
        {"backend": "cuda"},
        ValueError,
        "backend='cuda': accepted are 'auto', 'triton', 'to",
    ),
    "hidden_nested": (
        {"hidden": torch.nested.nested_tensor([HIDDEN[0], HIDDEN[1]], layout=torch.jagged)},
        TypeError,
        "hidden: expected a dense tensor [..., D], got a nested one",
    ),
    "hidden_sparse": ({"hidden": HIDDEN.to_sparse()}, TypeError, "got a sparse_coo one"),
    "jsd_beta_text": (
        {"teacher": sd.LogitsTeacher(LOGITS), "jsd_beta": "half"},
        ValueError,
        "jsd_beta='half': expected a number strictly between 0 and 1",
    ),
    "jsd_beta_tensor": (
        {"teacher": sd.LogitsTeacher(LOGITS), "jsd_beta": torch.tensor(0.5)},
        ValueError,
        "jsd_beta=tensor(0.5000): expected a number strictly between 0 and 1",
    ),
    "entry_clip_text": (
        {"teacher": sd.LogitsTeacher(LOGITS), "entry_clip": "0.1"},
        ValueError,
        "entry_clip='0.1': expected a number above 0",
    ),
    "entry_clip_bool": (
        {"teacher": sd.LogitsTeacher(LOGITS), "entry_clip": True},
        ValueError,
        "entry_clip=True: expected a number above 0",
    ),
    "topk_bool": ({"topk": True}, ValueError, "topk=True: expected a whole number from 1 to V = 9"),
    "gate_class": (
        {"gate": EntropySign},
        TypeError,
        "gate: expected a gate of sdkernels.gates or what its bind() returns, got the class Entrop",
    ),
    "gate": (
        {"gate": "entropy"},
        TypeError,
        "gate: expected a gate of sdkernels.gates or what its b",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_message(name: str) -> None:
    arguments, error, message = CASES[name]
    arguments = {"hidden": HIDDEN, "head": WEIGHT, **arguments}
    hidden, head = arguments.pop("hidden"), arguments.pop("head")
    with pytest.raises(error, match=re.escape(message)):
        sd.token_stats(hidden, head, **arguments)
    with pytest.raises(error, match=re.escape(message)):
        sd.token_loss(hidden, head, lambda s, tok: s.entropy, **arguments)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (1.0, TypeError, "tokens['adv']: expected a tensor, got float"),
        (
            torch.ones(B),
            ValueError,
            "tokens['adv']: expected shape [2, 3] (or more dimensions behin",
        ),
        (torch.ones(L, B), ValueError, "got [3, 2]"),
        (
            torch.ones(B, L, requires_grad=True),
            ValueError,
            "tokens['adv'] requires grad, but no gradient flows into tokens=; pass it .detach()-ed",
        ),
    ],
)
def test_tokens(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        sd.token_loss(HIDDEN, WEIGHT, lambda s, tok: s.entropy, tokens={"adv": value})


def test_tokens_and_loss_fn_of_another_kind() -> None:
    with pytest.raises(TypeError, match="tokens: expected a dict of tensors by name, got list"):
        sd.token_loss(HIDDEN, WEIGHT, lambda s, tok: s.entropy, tokens=[1])
    with pytest.raises(TypeError, match=r"loss_fn: expected a function of \(s, tok\), got NoneTyp"):
        sd.token_loss(HIDDEN, WEIGHT, None)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("head.weight", {"head": WEIGHT.to("meta")}),
        ("mask", {"mask": torch.ones(B, L, dtype=torch.bool, device="meta")}),
        ("targets", {"targets": IDS.to("meta")}),
        ("teacher.logits", {"teacher": sd.LogitsTeacher(LOGITS.to("meta"))}),
        ("teacher.hidden", {"teacher": sd.HiddenTeacher(HIDDEN.to("meta"), WEIGHT)}),
        ("teacher.head.weight", {"teacher": sd.HiddenTeacher(HIDDEN, WEIGHT.to("meta"))}),
        (
            "teacher.ids",
            {"teacher": sd.TopKTeacher(TOPK.ids.to("meta"), TOPK.logprobs.to("meta"))},
        ),
        ("tokens['adv']", {"tokens": {"adv": torch.ones(B, L, device="meta")}}),
    ],
)
def test_another_device(name: str, arguments: dict[str, Any]) -> None:
    arguments = {"head": WEIGHT, **arguments}
    message = f"{name} is on meta, hidden on cpu: move one of them"
    with pytest.raises(ValueError, match=re.escape(message)):
        sd.token_loss(HIDDEN, arguments.pop("head"), lambda s, tok: s.entropy, **arguments)


def test_a_sharded_hidden_state_is_refused() -> None:
    class Shard(torch.Tensor):
        device_mesh = "mesh"
        full_tensor = None

    with pytest.raises(TypeError, match="hidden is a DTensor: pass this rank's tokens"):
        sd.token_stats(HIDDEN.as_subclass(Shard), WEIGHT)


def test_padding_ids_are_fine_where_the_mask_leaves_them_out() -> None:
    mask = torch.tensor([[True, False, True], [False, True, True]])
    stats = sd.token_stats(HIDDEN, WEIGHT, targets=IDS.masked_fill(~mask, -100), mask=mask)
    full = sd.token_stats(HIDDEN, WEIGHT, targets=IDS)
    assert torch.equal(stats.logp, full.logp * mask)


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), 0.5])
def test_numbers_of_numpy_are_numbers(number: Any) -> None:
    plain = sd.token_stats(HIDDEN, WEIGHT, temperature=0.5).entropy
    assert torch.equal(sd.token_stats(HIDDEN, WEIGHT, temperature=number).entropy, plain)
    sd.token_stats(HIDDEN, WEIGHT, topk=np.int64(2), chunk_bytes=np.int64(1 << 20))


def test_an_id_twice_among_the_targets_counts_twice() -> None:
    hidden = HIDDEN.clone().requires_grad_()
    ids = torch.tensor([3, 3, 1]).expand(B, L, 3)
    stats = sd.token_stats(hidden, WEIGHT, targets=ids)
    assert torch.equal(stats.logp[..., 0], stats.logp[..., 1])
    (both,) = torch.autograd.grad(stats.logp[..., :2].sum(), hidden, retain_graph=True)
    (one,) = torch.autograd.grad(stats.logp[..., 0].sum(), hidden)
    torch.testing.assert_close(both, 2 * one)


def test_targets_without_any_id() -> None:
    stats = sd.token_stats(HIDDEN, WEIGHT, targets=IDS[..., None][..., :0])
    assert stats.logp.shape == (B, L, 0)


# --- a mask as positions --------------------------------------------------------------------------


@pytest.mark.parametrize("gate", [None, EntropySign(quantile=0.5)])
def test_positions_are_the_mask(gate: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(7, 4, generator=generator, dtype=torch.float64).requires_grad_()
    ids = torch.randint(7, (2, 5), generator=generator)
    mask = torch.tensor([[True, False, True, True, False], [False, True, True, False, True]])
    results = []
    for kept in (mask, mask.reshape(-1).nonzero().squeeze(-1)):
        loss, stats = sd.token_loss(
            hidden, weight, lambda s, tok: s.logp * s.entropy, targets=ids, mask=kept, gate=gate
        )
        (grad,) = torch.autograd.grad(loss, weight)
        results.append([loss.detach(), grad, *(value for _, value in stats.items())])
    for by_mask, by_positions in zip(*results, strict=True):
        assert torch.equal(by_mask, by_positions)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_positions_in_the_named_shortcuts(reduction: str) -> None:
    hidden, weight = torch.randn(6, 4), torch.randn(7, 4)
    teacher = sd.LogitsTeacher(torch.randn(6, 7))
    mask = torch.arange(6) % 2 == 0
    values = [
        sd.linear_divergence(
            hidden, weight, teacher, weights=torch.arange(6.0), reduction=reduction, mask=kept
        )
        for kept in (mask, torch.tensor([0, 2, 4]))
    ]
    torch.testing.assert_close(values[0], values[1])


@pytest.mark.parametrize(
    "positions",
    [[0, 0], [2, 1], [-1, 2], [0, 6], [1, 1, 0, 1, 1, 0]],
    ids=["twice", "falling", "negative", "too far", "0 and 1"],
)
def test_wrong_positions_are_refused(positions: list[int]) -> None:
    with pytest.raises(ValueError, match=r"mask: positions must rise and lie in 0\.\.5"):
        sd.token_stats(torch.ones(6, 4), torch.ones(7, 4), mask=torch.tensor(positions))


def test_positions_have_one_dimension_and_none_of_them_is_no_token() -> None:
    with pytest.raises(ValueError, match=r"expected as \[N\], got \[1, 1\]"):
        sd.token_stats(torch.ones(6, 4), torch.ones(7, 4), mask=torch.zeros(1, 1).long())
    stats = sd.token_stats(torch.ones(6, 4), torch.ones(7, 4), mask=torch.zeros(0).long())
    assert not stats.entropy.any()


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 1e-19), (torch.float64, 1e-154)])
def test_a_share_too_small_for_the_sums_is_refused(dtype: torch.dtype, least: float) -> None:
    hidden, weight = torch.ones(2, 3, dtype=dtype), torch.ones(5, 3, dtype=dtype)
    teacher = sd.LogitsTeacher(torch.zeros(2, 5, dtype=dtype))
    for beta in (2 * least, 1e-9, 1 - 1e-9):
        assert not sd.token_stats(hidden, weight, teacher=teacher, jsd_beta=beta).jsd.any()
    with pytest.raises(ValueError, match=rf"jsd_beta=.*: {dtype} has no digits for a share below"):
        sd.token_stats(hidden, weight, teacher=teacher, jsd_beta=least)
