"""`token_loss` against plain autograd over materialised logits, and what autograd may do with it.

A loss that mixes every statistic with random signed weights is compared in value and in every
gradient. float64 has to agree to 1e-12; lower precisions are judged by `sdkernels.testing`.
"""

import gc
import weakref
from typing import Any

import pytest
import torch
from helpers.oracle import Problem, assert_loss_exact, everything_loss, make_problem
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import sdkernels as sd
from sdkernels.testing import assert_close_to_reference, assert_exact

MASK = torch.rand(5, 4, generator=torch.Generator().manual_seed(9)) > 0.4
PROBLEMS: dict[str, dict[str, Any]] = {
    "hidden_teacher": {},
    "logits_teacher": {"teacher": "logits"},
    "topk_teacher": {"teacher": "topk"},
    "topk_teacher_without_tail": {"teacher": "topk", "tail": False},
    "no_teacher": {"teacher": None},
    "no_bias": {"bias": False},
    "three_ids": {"ids": 3},
    "one_id_axis": {"ids": 1},
    "no_targets": {"targets": None},
    "temperature": {"temperature": 0.7},
    "two_temperatures": {"temperature": 0.7, "teacher_temperature": 1.9},
    "scale": {"scale": 0.4},
    "softcap": {"softcap": 2.5},
    "all_transforms": {
        "scale": 0.6,
        "softcap": 2.0,
        "temperature": 1.3,
        "teacher_temperature": 0.8,
        "valid_vocab": 17,
    },
    "valid_vocab": {"valid_vocab": 17},
    "valid_vocab_logits_teacher": {"valid_vocab": 17, "teacher": "logits"},
    "valid_vocab_topk_teacher": {"valid_vocab": 17, "teacher": "topk"},
    "topk_of_teacher": {"topk_of": "teacher"},
    "topk_of_everything": {"topk": 23},
    "unequal_hidden": {"D": 3, "teacher_D": 11},
    "masked": {"mask": MASK},
    "masked_logits_teacher": {"mask": MASK, "teacher": "logits", "ids": 2},
    "masked_topk_teacher": {"mask": MASK, "teacher": "topk"},
    "one_dimension": {"lead": ()},
    "one_dimension_logits_teacher": {"lead": (), "teacher": "logits"},
    "one_dimension_topk_teacher": {"lead": (), "teacher": "topk", "ids": 2},
    "three_dimensions": {"lead": (2, 3, 4)},
    "one_token": {"lead": (1,)},
    "two_entries": {"V": 2, "topk": 1},
    "clip_everything": {"entry_clip": 1e-9},
    "clip_nothing": {"entry_clip": 1e9},
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_exact_in_float64(name: str) -> None:
    assert_loss_exact(make_problem(**PROBLEMS[name]), everything_loss)


def bytes_for(problem: Problem, tokens: int) -> int:
    """A budget that holds `tokens` tokens a chunk, found the way a user would: by trying."""
    from sdkernels.engine.arguments import build_problem

    low, high = 1, 1 << 24
    while low < high:
        middle = (low + high) // 2
        try:
            plan = build_problem(
                problem.hidden,
                problem.head(),
                **problem.keywords(),
                tokens=None,
                chunk_bytes=middle,
                slab_dtype="float32",
                backend="torch",
                debug=False,
            ).plan
            fits = plan.chunk_tokens >= tokens
        except ValueError:
            fits = False
        low, high = (low, middle) if fits else (middle + 1, high)
    return low


@pytest.mark.parametrize("tokens", [1, 3, 7])
@pytest.mark.parametrize("name", ["hidden_teacher", "masked_logits_teacher", "topk_teacher"])
def test_chunks_change_nothing(name: str, tokens: int) -> None:
    problem = make_problem(**PROBLEMS[name])
    assert_loss_exact(problem, everything_loss, chunk_bytes=bytes_for(problem, tokens))


@pytest.mark.parametrize("V", [1, 5, 23, 101])
@pytest.mark.parametrize("T", [1, 7, 8, 9, 33])
@pytest.mark.parametrize("elements", [1, 101, 300])
def test_shapes_around_a_block(
    T: int, V: int, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdkernels.rows.blocks.BLOCK_ELEMENTS", elements)
    assert_loss_exact(make_problem((T,), V=V, topk=min(3, V)), everything_loss)


@pytest.mark.parametrize(
    "trainable", [(), ("hidden",), ("weight",), ("bias",), ("hidden", "bias"), ("weight", "bias")]
)
def test_what_is_frozen_gets_no_gradient(trainable: tuple[str, ...]) -> None:
    problem = make_problem(mask=MASK)
    for name in ("hidden", "weight", "bias"):
        getattr(problem, name).requires_grad_(name in trainable)
    assert_loss_exact(problem, everything_loss)
    loss, _ = problem.engine_loss(everything_loss)
    assert loss.requires_grad == bool(trainable)
    if trainable:
        loss.backward()
        for name in ("hidden", "weight", "bias"):
            assert (getattr(problem, name).grad is not None) == (name in trainable)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_without_grad_the_value_is_the_same_and_no_gradient_is_formed(
    guard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make_problem()
    expected, _ = problem.engine_loss(everything_loss)

    def forbidden(*_: object) -> None:
        raise AssertionError("a gradient was formed")

    monkeypatch.setattr("sdkernels.rows.torch_rows.TorchRows.backward", forbidden)
    with guard():
        loss, stats = problem.engine_loss(everything_loss)
    assert not loss.requires_grad
    assert not any(value.requires_grad for _, value in stats.items())
    assert torch.equal(loss, expected.detach())


def test_statistics_are_detached() -> None:
    _, stats = make_problem().engine_loss(everything_loss)
    assert not any(value.requires_grad for _, value in stats.items())


# --- no token -------------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher", ["hidden", "logits", "topk", None])
@pytest.mark.parametrize("lead", [(0,), (2, 0), (5, 4)])
def test_no_token(lead: tuple[int, ...], teacher: str | None) -> None:
    mask = torch.zeros(lead, dtype=torch.bool) if lead == (5, 4) else None
    problem = make_problem(lead, teacher=teacher, mask=mask)
    loss, stats = problem.engine_loss(everything_loss)
    assert loss.item() == 0.0
    loss.backward()
    for leaf in problem.leaves().values():
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))
    assert stats.entropy.shape == lead
    assert stats.topk_logp.shape[:-1] == lead
    assert not any(value.any() for _, value in stats.items())


# --- low precision --------------------------------------------------------------------------------


def nll_and_kl(s: Any, tok: Any) -> Tensor:
    return tok.q * (s.kl_teacher_student - s.logp) + tok.w[:, 0] * s.entropy


def reference_grads(problem: Problem) -> tuple[Tensor, dict[str, Tensor]]:
    loss = problem.reference_loss(nll_and_kl)
    leaves = problem.leaves()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return loss.detach(), dict(zip(leaves, grads, strict=True))


@pytest.mark.parametrize("slab_dtype", ["float32", "model"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("teacher", ["hidden", "logits"])
def test_low_precision_is_as_near_as_plain_torch(
    teacher: str, dtype: torch.dtype, slab_dtype: str
) -> None:
    problem = make_problem((128,), D=32, V=300, teacher=teacher, dtype=dtype, topk=None, bias=False)
    _, exact = reference_grads(problem.to(torch.float64))
    _, plain = reference_grads(problem)
    loss, stats = problem.engine_loss(nll_and_kl, slab_dtype=slab_dtype, chunk_bytes=1 << 20)
    assert loss.dtype == torch.float32
    loss.backward()
    for name, leaf in problem.leaves().items():
        assert_close_to_reference(
            leaf.grad, exact[name], plain[name], kind="gradient", name=f"gradient of {name}"
        )
    exact_stats = problem.to(torch.float64).reference_stats()
    plain_stats = problem.reference_stats()
    for name in ("logp", "entropy", "kl_teacher_student"):
        assert stats[name].dtype == torch.float32
        assert_close_to_reference(
            stats[name].to(dtype), vars(exact_stats)[name], vars(plain_stats)[name], name=name
        )


@pytest.mark.parametrize(
    ("hidden", "weight", "teacher"),
    [
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float16),
        (torch.float16, torch.float32, torch.bfloat16),
        (torch.float32, torch.float64, torch.float32),
        (torch.float64, torch.float32, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("slab_dtype", ["float32", "model"])
def test_mixed_dtypes(
    hidden: torch.dtype, weight: torch.dtype, teacher: torch.dtype, slab_dtype: str
) -> None:
    problem = make_problem((64,), D=16, V=200, topk=None)
    problem.hidden = problem.hidden.detach().to(hidden).requires_grad_()
    problem.weight = problem.weight.detach().to(weight).requires_grad_()
    problem.teacher_hidden = problem.teacher_hidden.to(teacher)
    problem.teacher_weight = problem.teacher_weight.to(teacher)
    _, exact = reference_grads(problem.to(torch.float64))
    loss, _ = problem.engine_loss(nll_and_kl, slab_dtype=slab_dtype)
    loss.backward()
    for name, leaf in problem.leaves().items():
        assert leaf.grad.dtype == leaf.dtype
        # What 8 bits of mantissa in a slab allow; everywhere else float32 inside, one rounding.
        worst = {torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(leaf.dtype, 1e-6)
        if slab_dtype == "model" and hidden.itemsize == 2:
            worst = 1.5e-2
        error = (leaf.grad.double() - exact[name]).norm() / exact[name].norm()
        assert error < worst, name


def test_autocast_changes_nothing() -> None:
    problem = make_problem(dtype=torch.float32)
    plain, _ = problem.engine_loss(everything_loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = problem.engine_loss(everything_loss)
    grads = [torch.autograd.grad(x, list(problem.leaves().values())) for x in (plain, mixed)]
    assert torch.equal(plain, mixed)
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_upstream_factor_is_not_rounded_to_16_bits(dtype: torch.dtype) -> None:
    """65536, where GradScaler starts, is inf in float16; 1/3 in bfloat16 is 0.2 % too large."""
    problem = make_problem((16,), D=32, V=300, dtype=dtype, bias=False)
    leaves = list(problem.leaves().values())

    def small_loss(s: Any, tok: Any) -> Tensor:
        return 1e-3 * s.entropy

    expected = torch.autograd.grad(problem.engine_loss(small_loss)[0], leaves)
    for factor in (65536.0, 1 / 3):
        for keep in (False, True):
            loss, _ = problem.engine_loss(small_loss)
            grads = torch.autograd.grad(loss * factor, leaves, retain_graph=keep)
            for grad, unscaled in zip(grads, expected, strict=True):
                unit = unscaled.double() / unscaled.double().square().sum()
                assert abs((grad.double() * unit).sum() / factor - 1) < 5e-4


def test_gradients_below_float16_survive_until_the_loss_scale() -> None:
    """A mean over many tokens gives gradients under 6e-8 that only the loss scale lifts again."""
    problem = make_problem((64,), D=16, dtype=torch.float16, topk=None)

    def tiny_loss(s: Any, tok: Any) -> Tensor:
        return 1e-7 * s.entropy

    loss, _ = problem.engine_loss(tiny_loss)
    (loss * 65536.0).backward()
    wide = problem.to(torch.float64)
    exact, _ = wide.engine_loss(tiny_loss)
    (exact * 65536.0).backward()
    for name, leaf in problem.leaves().items():
        error = (leaf.grad.double() - wide.leaves()[name].grad).norm()
        assert error < 1e-2 * wide.leaves()[name].grad.norm(), name


# --- autograd -------------------------------------------------------------------------------------


def test_second_backward_with_retain_graph() -> None:
    problem = make_problem()
    leaves = list(problem.leaves().values())
    loss, _ = problem.engine_loss(everything_loss)
    first = torch.autograd.grad(loss, leaves, loss.detach() * 0 + 0.3, retain_graph=True)
    kept = [grad.clone() for grad in first]
    second = torch.autograd.grad(loss, leaves, loss.detach() * 0 - 2.0)
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))
    for a, b in zip(first, second, strict=True):
        assert_exact(a / 0.3, b / -2.0)
    with pytest.raises(RuntimeError, match="backward a second time; call the first with retain_gr"):
        torch.autograd.grad(loss, leaves)


def test_backward_frees_the_gradients() -> None:
    problem = make_problem()
    loss, _ = problem.engine_loss(everything_loss)
    held = weakref.ref(loss.grad_fn.parts[1].value)
    (grad,) = torch.autograd.grad(loss, problem.weight)
    assert held() is grad, "a [V, D] gradient should be handed over, not copied"
    del grad
    gc.collect()
    assert held() is None


@pytest.mark.parametrize("power", [1, 2])
def test_double_backward_raises(power: int) -> None:
    """Also where the upstream gradient is a constant (power 1): a gradient penalty is no 0."""
    problem = make_problem()
    loss, _ = problem.engine_loss(everything_loss)
    (grad,) = torch.autograd.grad(loss**power, problem.hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        (problem.hidden.sum() + grad.square().sum()).backward()


def test_a_graph_that_nobody_differentiates_changes_nothing() -> None:
    grads = []
    for create_graph in (False, True):
        problem = make_problem()
        loss, _ = problem.engine_loss(everything_loss)
        grads.append(
            torch.autograd.grad(loss, list(problem.leaves().values()), create_graph=create_graph)
        )
    for plain, with_graph in zip(*grads, strict=True):
        assert torch.equal(plain, with_graph)


def test_gradients_add_to_existing_ones_and_inputs_stay_as_they_are() -> None:
    problem = make_problem(teacher="logits", mask=MASK)
    before = {
        name: value.detach().clone()
        for name, value in vars(problem).items()
        if isinstance(value, Tensor)
    }
    loss, _ = problem.engine_loss(everything_loss)
    expected = torch.autograd.grad(loss, problem.weight, retain_graph=True)[0]
    problem.weight.grad = torch.ones_like(problem.weight)
    loss.backward()
    assert_exact(problem.weight.grad, expected + 1.0)
    for name, value in before.items():
        assert torch.equal(getattr(problem, name).detach(), value), name


def test_accumulation_over_micro_batches_equals_one_batch() -> None:
    problem = make_problem((8,), teacher="logits", topk=None)
    whole, _ = problem.engine_loss(nll_and_kl)
    expected = torch.autograd.grad(whole, problem.weight)[0]
    for i in range(8):
        part = Problem(
            hidden=problem.hidden[i : i + 1],
            weight=problem.weight,
            bias=problem.bias,
            teacher_logits=problem.teacher_logits[i : i + 1],
            targets=problem.targets[i : i + 1],
            tokens={name: value[i : i + 1] for name, value in problem.tokens.items()},
        )
        part.engine_loss(nll_and_kl)[0].backward()
    assert_exact(problem.weight.grad, expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing(use_reentrant: bool) -> None:
    problem = make_problem()
    mixer = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)

    def run(hidden: Tensor) -> Tensor:
        moved = Problem(**{**vars(problem), "hidden": torch.tanh(hidden @ mixer)})
        return moved.engine_loss(everything_loss)[0]

    leaves = [problem.hidden, problem.weight, problem.bias, mixer]
    run(problem.hidden).backward()
    expected = [leaf.grad.clone() for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    checkpoint(run, problem.hidden, use_reentrant=use_reentrant).backward()
    assert all(torch.equal(leaf.grad, grad) for leaf, grad in zip(leaves, expected, strict=True))


def test_weight_used_twice_gets_both_gradients() -> None:
    """Tied embeddings: the head's weight also makes the hidden states, and is the teacher's."""
    problem = make_problem((9,), teacher=None, bias=False, topk=None)
    ids = torch.arange(9)
    teacher = torch.randn(9, 6, dtype=torch.float64)

    def kl(s: Any, tok: Any) -> Tensor:
        return s.kl_teacher_student - s.logp

    hidden = problem.weight[ids] * 0.7
    loss, _ = sd.token_loss(
        hidden,
        problem.weight,
        kl,
        targets=problem.targets,
        teacher=sd.HiddenTeacher(teacher, problem.weight),
    )
    (got,) = torch.autograd.grad(loss, problem.weight)
    tied = Problem(
        hidden=problem.weight[ids] * 0.7,
        weight=problem.weight,
        teacher_hidden=teacher,
        teacher_weight=problem.weight,
        targets=problem.targets,
    )
    (expected,) = torch.autograd.grad(tied.reference_loss(kl), problem.weight)
    assert_exact(got, expected)


def test_inference_tensors_serve_as_inputs() -> None:
    with torch.inference_mode():
        hidden, logits = torch.randn(6, 4), torch.randn(6, 9)
    weight = torch.randn(9, 4, requires_grad=True)
    loss, _ = sd.token_loss(
        hidden, weight, lambda s, tok: s.kl_teacher_student, teacher=sd.LogitsTeacher(logits)
    )
    loss.backward()
    assert weight.grad.abs().sum() > 0


def test_results_are_bitwise_repeatable() -> None:
    problem = make_problem((50,), D=32, V=500, dtype=torch.float32)
    runs = []
    for _ in range(5):
        loss, _ = problem.engine_loss(everything_loss)
        runs.append([loss.detach(), *torch.autograd.grad(loss, list(problem.leaves().values()))])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


# --- views ----------------------------------------------------------------------------------------


def strided(tensor: Tensor) -> Tensor:
    """The same numbers with twice the strides."""
    wide = torch.stack([tensor.detach(), torch.full_like(tensor, 9)], dim=-1)
    return wide[..., 0]


@pytest.mark.parametrize("teacher", ["hidden", "logits", "topk"])
@pytest.mark.parametrize("mask", [None, MASK])
def test_views(teacher: str, mask: Tensor | None) -> None:
    """hidden[:, :-1], a transposed batch, strided and int32 targets, a transposed weight."""
    problem = make_problem(teacher=teacher, mask=mask)
    for name in ("teacher_hidden", "teacher_logits", "teacher_ids", "teacher_logprobs"):
        value = getattr(problem, name)
        if value is not None:
            setattr(problem, name, torch.cat([value, value[:, :1]], dim=1)[:, :-1])
    hidden = problem.hidden.detach()
    problem.hidden = torch.cat([hidden, hidden[:, :1]], dim=1)[:, :-1].requires_grad_()
    problem.weight = problem.weight.detach().t().contiguous().t().requires_grad_()
    problem.targets = strided(problem.targets.int())
    problem.tokens = {name: strided(value) for name, value in problem.tokens.items()}
    assert not problem.hidden.is_contiguous()
    assert not problem.targets.is_contiguous()
    assert_loss_exact(problem, everything_loss)


def test_transposed_batch_and_column_slice_of_a_weight() -> None:
    problem = make_problem((5, 4))
    problem.hidden = problem.hidden.detach().transpose(0, 1).contiguous().transpose(0, 1)
    problem.hidden.requires_grad_()
    problem.weight = strided(problem.weight).requires_grad_()
    assert_loss_exact(problem, everything_loss)


def test_expanded_hidden_and_tokens() -> None:
    problem = make_problem((5, 4))
    problem.hidden = problem.hidden.detach()[:1].expand(5, 4, 6).requires_grad_()
    problem.tokens["q"] = torch.tensor(0.7, dtype=torch.float64).expand(5, 4)
    assert_loss_exact(problem, everything_loss)


def test_teacher_logits_are_not_copied_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """logits[:, :-1] has no flat view; flattening it would copy [T, V] once a chunk."""
    logits = torch.randn(3, 5, 50)[:, :-1]
    teacher = sd.LogitsTeacher(logits)
    hidden, weight = torch.randn(3, 4, 6), torch.randn(50, 6)
    reshape, whole = Tensor.reshape, []
    monkeypatch.setattr(
        Tensor,
        "reshape",
        lambda self, *shape: whole.append(self.numel()) or reshape(self, *shape),
    )
    sd.token_stats(hidden, weight, teacher=teacher)
    assert logits.numel() not in whole
