"""How an entropy gate (`sdkernels.gates`) meets the engine: thresholds first, `direction` per chunk
afterwards.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from sdkernels.engine.arguments import mask_of
from sdkernels.engine.problem import Problem


def attach_gate(problem: Problem, gate: Any, mask: Tensor | None) -> None:
    """Bind `gate` to this problem's tokens; a quantile gate costs a no-grad entropy pass over the
    student.

    Raises:
        TypeError: `gate` is neither a gate nor a bound gate.
        ValueError: a bound gate's thresholds have another shape than the tokens.
    """
    if gate is None:
        return
    if hasattr(gate, "bind") and not isinstance(gate, type):
        lead = problem.lead_shape
        valid = torch.ones(lead, dtype=torch.bool, device=problem.device)
        if mask is not None:
            valid = mask_of(mask, lead)
        entropy = _entropies(problem) if gate.needs_entropy else None
        gate = gate.bind(entropy, valid)
    if isinstance(gate, type) or not hasattr(gate, "direction"):
        raise TypeError(
            "gate: expected a gate of sdkernels.gates or what its bind() returns, got "
            f"{f'the class {gate.__name__}' if isinstance(gate, type) else type(gate).__name__}"
        )
    thresholds = {}
    for name in ("tau", "sigma"):
        value = getattr(gate, name)
        if value is None:
            continue
        if value.shape != problem.lead_shape:
            raise ValueError(
                f"gate.{name}: expected the shape of the tokens {list(problem.lead_shape)}, got "
                f"{list(value.shape)}"
            )
        thresholds[name] = value
    problem.gate, problem.gate_thresholds = gate, thresholds


def _entropies(problem: Problem) -> Tensor:
    """Student entropies of all kept tokens, in nats, without the teacher."""
    alone = dataclasses.replace(
        problem,
        teacher=None,
        ids_NK=None,
        spec=dataclasses.replace(problem.spec, jsd_beta=None, entry_clip=None, topk=None),
    )
    slabs = alone.slabs()
    parts = []
    for lo, hi in alone.plan.ranges:
        # In a variable: the state of one chunk keeps the row backend's buffers for the next.
        chunk = alone.forward_chunk(slabs, lo, hi)
        parts.append(chunk[0]["entropy"])
    return alone.restore(torch.cat(parts))
