"""`torch.ops.sdkernels.token_statistics`: the engine as an operator that torch.compile can trace.

Inside a compiled function the named shortcuts call it; it takes tensors and numbers only. Its
backward is an operator too and computes the logits again. Forward 2 T D V floating point operations
a model, backward 6 (student, trainable head) plus 2 (teacher). With a frozen head and one number a
token the forward keeps d statistic / d hidden instead (2 more, nothing in the backward). T may be
dynamic. Dtypes are taken as they come, autocast or not. A second backward through the gradient has
no formula and raises.

Shape letters: T tokens (any leading shape), V vocabulary, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from sdkernels.engine.arguments import build_problem
from sdkernels.engine.heads import LMHead
from sdkernels.engine.problem import Problem
from sdkernels.engine.teachers import HiddenTeacher, LogitsTeacher, Teacher
from sdkernels.engine.token_stats import gradients_of, run_token_stats, stats_and_rows


@dataclass(frozen=True)
class _Inputs:
    """What both operators take, in this order: the tensors, then the rest. Their schemas are read
    off it.

    `names` are comma-separated fields of `TokenStats`. `teacher_states` are hidden states where
    there is a `teacher_weight`, else logits. The rest is as in `token_stats` and `LMHead`.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor | None
    mask: Tensor | None
    teacher_states: Tensor | None
    teacher_weight: Tensor | None
    teacher_bias: Tensor | None
    names: str
    scale: float
    softcap: float | None
    valid_vocab: int | None
    teacher_scale: float
    teacher_softcap: float | None
    teacher_valid_vocab: int | None
    temperature: float
    teacher_temperature: float | None
    jsd_beta: float | None
    chunk_bytes: int | None
    backend: str
    debug: bool

    @property
    def head(self) -> LMHead:
        """The student's."""
        return LMHead(
            self.weight,
            self.bias,
            scale=self.scale,
            softcap=self.softcap,
            valid_vocab=self.valid_vocab,
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `build_problem` (and `run_token_stats`)."""
        return {
            "targets": self.targets,
            "mask": self.mask,
            "teacher": self._teacher(),
            "tokens": None,
            "entry_clip": None,
            "topk": None,
            "topk_of": "student",
            "slab_dtype": "float32",
            "temperature": self.temperature,
            "teacher_temperature": self.teacher_temperature,
            "jsd_beta": self.jsd_beta,
            "chunk_bytes": self.chunk_bytes,
            "backend": self.backend,
            "debug": self.debug,
        }

    def _teacher(self) -> Teacher | None:
        if self.teacher_states is None:
            return None
        if self.teacher_weight is None:
            return LogitsTeacher(self.teacher_states, valid_vocab=self.teacher_valid_vocab)
        head = LMHead(
            self.teacher_weight,
            self.teacher_bias,
            scale=self.teacher_scale,
            softcap=self.teacher_softcap,
            valid_vocab=self.teacher_valid_vocab,
        )
        return HiddenTeacher(self.teacher_states, head)


_IN_SCHEMA = {
    "Tensor": "Tensor",
    "Tensor | None": "Tensor?",
    "str": "str",
    "float": "float",
    "float | None": "float?",
    "int | None": "SymInt?",
    "bool": "bool",
}
_SCHEMA = ", ".join(f"{_IN_SCHEMA[str(field.type)]} {field.name}" for field in fields(_Inputs))
_NUM_TENSORS = 8


@torch.library.custom_op(
    "sdkernels::token_statistics",
    mutates_args=(),
    schema=f"({_SCHEMA}, bool keep_rows) -> Tensor[]",
)
def token_statistics(*inputs: Any) -> list[Tensor]:
    """The statistics `names` of each token, in nats; with `keep_rows` (one name only) its
    derivative by the token's hidden state behind it, `[..., D]`.
    """
    *shared, keep_rows = inputs
    given = _Inputs(*shared)
    hidden, head, names = given.hidden, given.head, given.names
    with torch.no_grad():
        if keep_rows:
            stats, rows = stats_and_rows(hidden, head, names, **given.arguments)
            return [stats[names].clone(), rows]
        stats = run_token_stats(hidden, head, only=None, gate=None, **given.arguments)
    # An operator's results may not share memory with each other.
    return [stats[name].clone() for name in names.split(",")]


@token_statistics.register_fake
def _(*inputs: Any) -> list[Tensor]:
    *shared, keep_rows = inputs
    given = _Inputs(*shared)
    hidden, ids = given.hidden, given.targets
    double = torch.float64 in (hidden.dtype, given.weight.dtype)
    dtype = torch.float64 if double else torch.float32
    shapes = [
        ids.shape if ids is not None and name == "logp" else hidden.shape[:-1]
        for name in given.names.split(",")
    ]
    if keep_rows:
        shapes.append(hidden.shape)
    return [hidden.new_empty(shape, dtype=dtype) for shape in shapes]


@torch.library.custom_op(
    "sdkernels::token_statistics_backward",
    mutates_args=(),
    schema="(Tensor[] upstream, bool needs_hidden, bool needs_weight, bool needs_bias, "
    f"{_SCHEMA}) -> Tensor[]",
)
def token_statistics_backward(
    upstream: list[Tensor], needs_hidden: bool, needs_weight: bool, needs_bias: bool, *inputs: Any
) -> list[Tensor]:
    """Gradients of those of hidden, weight and bias that are needed, given one upstream gradient
    for each of `names`.
    """
    given = _Inputs(*inputs)
    with torch.no_grad(), torch.autocast(given.hidden.device.type, enabled=False):
        problem = build_problem(given.hidden, given.head, **given.arguments)
        coefs_N = {
            name: _kept(problem, gradient, name)
            for name, gradient in zip(given.names.split(","), upstream, strict=True)
        }
        found = gradients_of(problem, coefs_N, (needs_hidden, needs_weight, needs_bias))
    return [gradient for gradient in found if gradient is not None]


@token_statistics_backward.register_fake
def _(
    upstream: list[Tensor], needs_hidden: bool, needs_weight: bool, needs_bias: bool, *inputs: Any
) -> list[Tensor]:
    given = _Inputs(*inputs)
    wanted = (
        (needs_hidden, given.hidden),
        (needs_weight, given.weight),
        (needs_bias, given.bias),
    )
    return [
        source.new_empty(source.shape) for need, source in wanted if need and source is not None
    ]


@torch.library.custom_op("sdkernels::scaled_rows", mutates_args=())
def scaled_rows(rows: Tensor, upstream: Tensor, hidden: Tensor) -> Tensor:
    """The gradient of `hidden` from kept rows, in its dtype. An operator, so that differentiating
    it again raises: the rows depend on `hidden` as well.
    """
    return (rows * upstream.reshape(hidden.shape[:-1])[..., None]).to(hidden.dtype)


@scaled_rows.register_fake
def _(rows: Tensor, upstream: Tensor, hidden: Tensor) -> Tensor:
    return hidden.new_empty(hidden.shape)


def _kept(problem: Problem, gradient: Tensor, name: str) -> Tensor:
    """Upstream gradients of the tokens that the mask leaves; log-probs with their K axis."""
    gradient_N = problem.rows(gradient, 0, problem.plan.tokens)
    return gradient_N[:, None] if name == "logp" and problem.one_id else gradient_N


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.set_materialize_grads(False)
    *numbers, ctx.keep_rows = inputs[_NUM_TENSORS:]
    ctx.numbers = tuple(numbers)
    if ctx.keep_rows:
        # All that a backward needs.
        ctx.mark_non_differentiable(output[-1])
        ctx.save_for_backward(inputs[0], output[-1])
    else:
        ctx.save_for_backward(*inputs[:_NUM_TENSORS])


def _differentiate(ctx: Any, upstream: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    names, *numbers = ctx.numbers
    none = (None,) * (_NUM_TENSORS + len(ctx.numbers) + 1 - 3)
    if ctx.keep_rows:
        hidden, rows = ctx.saved_tensors
        gradient = None if upstream[0] is None else scaled_rows(rows, upstream[0], hidden)
        return (gradient, None, None, *none)
    given = {
        name: gradient
        for name, gradient in zip(names.split(","), upstream, strict=True)
        if gradient is not None
    }
    needs = ctx.needs_input_grad[:3]
    if not given or not any(needs):
        return (None, None, None, *none)
    found = iter(
        token_statistics_backward(
            list(given.values()), *needs, *ctx.saved_tensors, ",".join(given), *numbers
        )
    )
    return (*(next(found) if need else None for need in needs), *none)


token_statistics.register_autograd(_differentiate, setup_context=_save)


def _take_dtypes_as_they_come() -> None:
    """Under autocast both operators do what they do without: the engine multiplies in the dtypes of
    its inputs and sums in float32, and casting a head would copy it.
    """
    for op in (token_statistics, token_statistics_backward):
        for device_type in ("cpu", "cuda", "xpu"):

            def run(*inputs: Any, op: Any = op, device_type: str = device_type) -> list[Tensor]:
                with torch.autocast(device_type, enabled=False):
                    found: list[Tensor] = op(*inputs)
                    return found

            _LIBRARY.impl(op._name, run, f"Autocast{device_type.upper()}")


_LIBRARY = torch.library.Library("sdkernels", "FRAGMENT")
_take_dtypes_as_they_come()


def statistics(
    names: tuple[str, ...],
    hidden: Tensor,
    head: LMHead,
    *,
    targets: Tensor | None = None,
    mask: Tensor | None = None,
    teacher: Teacher | None = None,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
    jsd_beta: float | None = None,
    chunk_bytes: int | None = None,
    backend: str = "auto",
    debug: bool = False,
) -> list[Tensor]:
    """The operator with the engine's own types.

    Raises:
        TypeError: a `TopKTeacher` or a vocabulary-parallel head, which the operator does not take.
    """
    heads = [head, teacher.head] if isinstance(teacher, HiddenTeacher) else [head]
    if any(one.shard is not None for one in heads):
        raise TypeError(
            "head: a vocabulary-parallel head (group=) is not supported inside torch.compile; call "
            "this function outside the compiled one, or under torch.compiler.disable"
        )
    tensors: tuple[Tensor | None, ...] = (None, None, None)
    numbers: tuple[float, float | None, int | None] = (1.0, None, None)
    if isinstance(teacher, HiddenTeacher):
        other = teacher.head
        bias = None if other.bias is None else other.bias.detach()
        tensors = (teacher.hidden, other.weight.detach(), bias)
        numbers = (other.scale, other.softcap, other.valid_vocab)
    elif isinstance(teacher, LogitsTeacher):
        tensors, numbers = (teacher.logits, None, None), (1.0, None, teacher.vocab)
    elif teacher is not None:
        raise TypeError(
            f"teacher: a {type(teacher).__name__} is not supported inside torch.compile; call this "
            "function outside the compiled one, or under torch.compiler.disable"
        )
    frozen = not head.weight.requires_grad and (head.bias is None or not head.bias.requires_grad)
    grows = torch.is_grad_enabled() and hidden.requires_grad
    keep_rows = frozen and grows and _one_number_a_token(names, hidden, targets)
    found: list[Tensor] = token_statistics(
        hidden,
        head.weight,
        head.bias,
        targets,
        mask,
        *tensors,
        ",".join(names),
        head.scale,
        head.softcap,
        head.valid_vocab,
        *numbers,
        temperature,
        teacher_temperature,
        jsd_beta,
        chunk_bytes,
        backend,
        debug,
        keep_rows,
    )
    return found[:1] if keep_rows else found


def _one_number_a_token(names: tuple[str, ...], hidden: Tensor, targets: Tensor | None) -> bool:
    one_id = targets is None or targets.dim() < hidden.dim()
    return len(names) == 1 and (names[0] != "logp" or one_id)
