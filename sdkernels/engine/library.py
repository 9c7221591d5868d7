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

from typing import Any

import torch
from torch import Tensor

from sdkernels.engine.arguments import build_problem
from sdkernels.engine.heads import LMHead
from sdkernels.engine.problem import Problem
from sdkernels.engine.teachers import HiddenTeacher, LogitsTeacher, Teacher
from sdkernels.engine.token_stats import gradients_of, run_token_stats, stats_and_rows

# The tensors, then the numbers; every function of this file takes them in this order.
_NUM_TENSORS = 8


def _arguments(
    targets: Tensor | None,
    mask: Tensor | None,
    teacher_tensors: tuple[Tensor | None, Tensor | None, Tensor | None],
    teacher_head: tuple[float, float | None, int | None],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Keyword arguments of `build_problem` (and `run_token_stats`) from the operator's."""
    states, weight, bias = teacher_tensors
    teacher: Teacher | None = None
    if states is not None and weight is not None:
        scale, softcap, valid_vocab = teacher_head
        head = LMHead(weight, bias, scale=scale, softcap=softcap, valid_vocab=valid_vocab)
        teacher = HiddenTeacher(states, head)
    elif states is not None:
        teacher = LogitsTeacher(states, valid_vocab=teacher_head[2])
    return {
        "targets": targets,
        "mask": mask,
        "teacher": teacher,
        "tokens": None,
        "entry_clip": None,
        "topk": None,
        "topk_of": "student",
        "slab_dtype": "float32",
        **settings,
    }


@torch.library.custom_op("sdkernels::token_statistics", mutates_args=())
def token_statistics(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor | None,
    mask: Tensor | None,
    teacher_states: Tensor | None,
    teacher_weight: Tensor | None,
    teacher_bias: Tensor | None,
    names: str,
    scale: float,
    softcap: float | None,
    valid_vocab: int | None,
    teacher_scale: float,
    teacher_softcap: float | None,
    teacher_valid_vocab: int | None,
    temperature: float,
    teacher_temperature: float | None,
    jsd_beta: float | None,
    chunk_bytes: int | None,
    backend: str,
    debug: bool,
    keep_rows: bool,
) -> list[Tensor]:
    """The statistics `names` (comma-separated fields of `TokenStats`) of each token, in nats; with
    `keep_rows` (one name only) its derivative by the token's hidden state behind it, `[..., D]`.

    `teacher_states` are hidden states where there is a `teacher_weight`, else logits. The rest is
    as in `token_stats` and `LMHead`.
    """
    arguments = _arguments(
        targets,
        mask,
        (teacher_states, teacher_weight, teacher_bias),
        (teacher_scale, teacher_softcap, teacher_valid_vocab),
        {
            "temperature": temperature,
            "teacher_temperature": teacher_temperature,
            "jsd_beta": jsd_beta,
            "chunk_bytes": chunk_bytes,
            "backend": backend,
            "debug": debug,
        },
    )
    head = LMHead(weight, bias, scale=scale, softcap=softcap, valid_vocab=valid_vocab)
    with torch.no_grad():
        if keep_rows:
            stats, rows = stats_and_rows(hidden, head, names, **arguments)
            return [stats[names].clone(), rows]
        stats = run_token_stats(hidden, head, only=None, gate=None, **arguments)
    # An operator's results may not share memory with each other.
    return [stats[name].clone() for name in names.split(",")]


@token_statistics.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Any, targets: Any, *rest: Any) -> list[Tensor]:
    names = rest[_NUM_TENSORS - 4]
    double = torch.float64 in (hidden.dtype, weight.dtype)
    dtype = torch.float64 if double else torch.float32
    shapes = [targets.shape if name == "logp" else hidden.shape[:-1] for name in names.split(",")]
    if rest[-1]:
        shapes.append(hidden.shape)
    return [hidden.new_empty(shape, dtype=dtype) for shape in shapes]


@torch.library.custom_op("sdkernels::token_statistics_backward", mutates_args=())
def token_statistics_backward(
    upstream: list[Tensor],
    needs_hidden: bool,
    needs_weight: bool,
    needs_bias: bool,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor | None,
    mask: Tensor | None,
    teacher_states: Tensor | None,
    teacher_weight: Tensor | None,
    teacher_bias: Tensor | None,
    names: str,
    scale: float,
    softcap: float | None,
    valid_vocab: int | None,
    teacher_scale: float,
    teacher_softcap: float | None,
    teacher_valid_vocab: int | None,
    temperature: float,
    teacher_temperature: float | None,
    jsd_beta: float | None,
    chunk_bytes: int | None,
    backend: str,
    debug: bool,
) -> list[Tensor]:
    """Gradients of those of hidden, weight and bias that are needed, given one upstream gradient
    for each of `names`.
    """
    arguments = _arguments(
        targets,
        mask,
        (teacher_states, teacher_weight, teacher_bias),
        (teacher_scale, teacher_softcap, teacher_valid_vocab),
        {
            "temperature": temperature,
            "teacher_temperature": teacher_temperature,
            "jsd_beta": jsd_beta,
            "chunk_bytes": chunk_bytes,
            "backend": backend,
            "debug": debug,
        },
    )
    head = LMHead(weight, bias, scale=scale, softcap=softcap, valid_vocab=valid_vocab)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        problem = build_problem(hidden, head, **arguments)
        coefs_N = {
            name: _kept(problem, gradient, name)
            for name, gradient in zip(names.split(","), upstream, strict=True)
        }
        found = gradients_of(problem, coefs_N, (needs_hidden, needs_weight, needs_bias))
    return [gradient for gradient in found if gradient is not None]


@token_statistics_backward.register_fake
def _(
    upstream: list[Tensor],
    needs_hidden: bool,
    needs_weight: bool,
    needs_bias: bool,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *rest: Any,
) -> list[Tensor]:
    wanted = ((needs_hidden, hidden), (needs_weight, weight), (needs_bias, bias))
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
