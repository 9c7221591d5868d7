"""The operator: opcheck, full graphs under torch.compile, one of them for any number of tokens."""

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import sdkernels as sd
from sdkernels.engine import library

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


def _arguments(names: str, t: dict[str, Any]) -> tuple[Any, ...]:
    tensors = (t["hidden"], t["weight"], t["bias"], t["targets"], t["mask"])
    teacher = (t["teacher_hidden"], t["teacher_weight"], None)
    numbers = (1.0, 5.0, 40, 1.0, None, 40, 0.9, None, 0.4, None, "auto", False)
    return (*tensors, *teacher, names, *numbers)


@pytest.mark.parametrize("names", ["logp", "logp,entropy", "kl_teacher_student,jsd"])
def test_opcheck_passes(names: str) -> None:
    torch.library.opcheck(library.token_statistics, _arguments(names, _tensors()))


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


def test_a_topk_teacher_is_refused_with_the_way_out() -> None:
    teacher = sd.TopKTeacher(torch.zeros(6, 1).long(), torch.full((6, 1), -1.0))
    with pytest.raises(TypeError, match=r"torch\.compiler\.disable"):
        library.statistics(
            ("kl_teacher_student",),
            _tensors()["hidden"],
            sd.LMHead(torch.ones(5, HIDDEN)),
            teacher=teacher,
        )
