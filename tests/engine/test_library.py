"""The operator: opcheck, full graphs under torch.compile, one of them for any number of tokens."""

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import sdkernels as sd
from sdkernels.engine import library
from sdkernels.engine.problem import Problem

HIDDEN, VOCAB = 12, 41


def _tensors(tokens: int = 6, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "teacher_weight": normal(VOCAB, HIDDEN),
        "weight": normal(VOCAB, HIDDEN).requires_grad_(),
        "bias": normal(VOCAB).requires_grad_(),
        "hidden": normal(tokens, HIDDEN).requires_grad_(),
        "teacher_hidden": normal(tokens, HIDDEN),
        "targets": torch.randint(VOCAB, (tokens,), generator=generator),
        "mask": torch.arange(tokens) % 3 != 1,
    }


def _arguments(names: str, t: dict[str, Any], keep_rows: bool = False) -> tuple[Any, ...]:
    tensors = (t["hidden"], t["weight"], t["bias"], t["targets"], t["mask"])
    teacher = (t["teacher_hidden"], t["teacher_weight"], None)
    numbers = (1.0, 5.0, 40, 1.0, None, 40, 0.9, None, 0.4, None, "auto", False, keep_rows)
    return (*tensors, *teacher, names, *numbers)


@pytest.mark.parametrize("names", ["logp", "logp,entropy", "kl_teacher_student,jsd"])
def test_opcheck_passes(names: str) -> None:
    torch.library.opcheck(library.token_statistics, _arguments(names, _tensors()))


def _frozen(tokens: int = 6, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    t = _tensors(tokens, dtype)
    return {**t, "weight": t["weight"].detach(), "bias": t["bias"].detach()}


@pytest.mark.parametrize("names", ["logp", "jsd"])
def test_opcheck_passes_where_rows_are_kept(names: str) -> None:
    torch.library.opcheck(library.token_statistics, _arguments(names, _frozen(), True))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", ["logp", "jsd", "entropy"])
def test_kept_rows_give_the_gradient_that_a_recomputation_gives(name: str, masked: bool) -> None:
    t = _frozen(dtype=torch.float32)
    if not masked:
        t["mask"] = None  # type: ignore[assignment]
    grads = []
    for keep_rows in (True, False):
        (value, *_) = library.token_statistics(*_arguments(name, t, keep_rows))
        loss = (value * torch.arange(6).cos()).sum()
        grads.append(torch.autograd.grad(loss, t["hidden"])[0])
    torch.testing.assert_close(grads[0], grads[1])
    assert grads[0].dtype == torch.float32


def _projections(run: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often `run` projects a chunk of hidden states to logits."""
    counted = []
    forward = Problem.forward_chunk
    with monkeypatch.context() as patch:
        patch.setattr(Problem, "forward_chunk", lambda *given: counted.append(1) or forward(*given))
        run()
    return len(counted)


@pytest.mark.parametrize(("frozen", "projections"), [(True, 1), (False, 2)])
def test_a_frozen_head_is_projected_once(
    frozen: bool, projections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """6 T D V with a teacher instead of 12, as `token_stats` takes it."""
    torch._dynamo.reset()
    t = _frozen() if frozen else _tensors()
    teacher = sd.LogitsTeacher(t["teacher_hidden"] @ t["teacher_weight"].T)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def loss(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return sd.linear_divergence(hidden, weight, teacher).sum()

    assert (
        _projections(lambda: loss(t["hidden"], t["weight"]).backward(), monkeypatch) == projections
    )


def test_no_second_derivative_of_kept_rows() -> None:
    t = _frozen()
    (value, _) = library.token_statistics(*_arguments("entropy", t, True))
    (grad,) = torch.autograd.grad(value.sum(), t["hidden"], create_graph=True)
    with pytest.raises(RuntimeError, match="scaled_rows"):
        torch.autograd.grad(grad.sum(), t["hidden"])


def test_autocast_changes_nothing() -> None:
    """Dtypes are taken as they come: no copy of the head in 16 bits, the same bits out."""
    t = _tensors(dtype=torch.float32)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found = library.token_statistics(*_arguments("kl_teacher_student", t))
            grads = torch.autograd.grad(found[0].sum(), [t["hidden"], t["weight"]])
        results.append([*found, *grads])
    for plain, autocast in zip(*results, strict=True):
        assert autocast.dtype == torch.float32
        assert torch.equal(plain, autocast)
    for name in ("token_statistics", "token_statistics_backward"):
        for key in ("AutocastCPU", "AutocastCUDA", "AutocastXPU"):
            has = torch._C._dispatch_has_kernel_for_dispatch_key
            assert has(f"sdkernels::{name}", key)


def test_autocast_inside_a_full_graph() -> None:
    torch._dynamo.reset()
    t = _tensors(dtype=torch.float32)

    def loss(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return sd.linear_logprob(hidden, weight, t["targets"]).sum()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def compiled(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss(hidden, weight)

    inputs = (t["hidden"], t["weight"])
    found = torch.autograd.grad(compiled(*inputs), inputs)
    for value, right in zip(found, torch.autograd.grad(loss(*inputs), inputs), strict=True):
        torch.testing.assert_close(value, right)


def test_gradcheck_passes() -> None:
    t = _tensors(3)

    def run(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Any:
        given = {**t, "hidden": hidden, "weight": weight, "bias": bias}
        return tuple(library.token_statistics(*_arguments("logp,jsd", given)))

    assert torch.autograd.gradcheck(run, (t["hidden"], t["weight"], t["bias"]))


def _losses(t: dict[str, Any]) -> list[Any]:
    """The shortcuts as a user calls them, each with a random weight per token."""

    def weigh(value: torch.Tensor) -> torch.Tensor:
        return (value * torch.arange(len(value)).cos()).sum()

    def logprob(hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        logp, entropy = sd.linear_logprob(hidden, weight, ids, with_entropy=True)
        return weigh(logp) + weigh(entropy * entropy)

    def divergence(hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        teacher = sd.LogitsTeacher(t["teacher_weight"][ids] @ t["teacher_weight"].T)
        return weigh(sd.linear_divergence(hidden, weight, teacher, "jsd", beta=0.3))

    def mean(hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        teacher = sd.LogitsTeacher(t["teacher_weight"][ids] @ t["teacher_weight"].T)
        return sd.linear_divergence(hidden, weight, teacher, reduction="mean")

    return [logprob, divergence, mean]


@pytest.mark.parametrize("index", range(3))
def test_one_full_graph_serves_any_number_of_tokens(index: int) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    for tokens in (6, 7, 9, 16):
        t = _tensors(tokens)
        loss = _losses(t)[index]
        if tokens == 6:
            compiled = torch.compile(loss, backend=counter, fullgraph=True, dynamic=True)
        inputs = (t["hidden"], t["weight"])
        expected = torch.autograd.grad(loss(*inputs, t["targets"]), inputs)
        found = torch.autograd.grad(compiled(*inputs, t["targets"]), inputs)
        for value, right in zip(found, expected, strict=True):
            torch.testing.assert_close(value, right)
    assert counter.frame_count == 1


def test_aot_autograd_gives_the_same_gradients() -> None:
    torch._dynamo.reset()
    t = _tensors()
    for loss in _losses(t):
        inputs = (t["hidden"], t["weight"])
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=True)
        expected = torch.autograd.grad(loss(*inputs, t["targets"]), inputs)
        found = torch.autograd.grad(compiled(*inputs, t["targets"]), inputs)
        for value, right in zip(found, expected, strict=True):
            torch.testing.assert_close(value, right)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_what_stands_in_masked_weights_does_no_harm(reduction: str, compiled: bool) -> None:
    torch._dynamo.reset()
    t = _tensors(6)
    mask = torch.tensor([True, False, True, True, False, True])
    teacher = sd.LogitsTeacher(t["teacher_hidden"] @ t["teacher_weight"].T)

    def loss(hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return sd.linear_divergence(
            hidden, t["weight"], teacher, weights=weights, mask=mask, reduction=reduction
        )

    weights = torch.arange(6, dtype=torch.float64).cos()
    expected = loss(t["hidden"], weights)
    if compiled:
        loss = torch.compile(loss, backend="aot_eager", fullgraph=True)
    found = loss(t["hidden"], weights.masked_fill(~mask, torch.nan))
    torch.testing.assert_close(found, expected)


def test_a_topk_teacher_is_refused_with_the_way_out() -> None:
    teacher = sd.TopKTeacher(torch.zeros(6, 1).long(), torch.full((6, 1), -1.0))
    with pytest.raises(TypeError, match=r"torch\.compiler\.disable"):
        library.statistics(
            ("kl_teacher_student",),
            _tensors()["hidden"],
            sd.LMHead(torch.ones(5, HIDDEN)),
            teacher=teacher,
        )


def test_both_operators_take_the_same_inputs() -> None:
    forward, backward = (
        [(argument.name, str(argument.type)) for argument in op._opoverload._schema.arguments]
        for op in (library.token_statistics, library.token_statistics_backward)
    )
    assert forward[:-1] == backward[4:]
    assert dict(forward)["bias"] == "Optional[Tensor]"
    assert dict(forward)["chunk_bytes"] == "Optional[int]"
    assert forward[-1] == ("keep_rows", "bool")
