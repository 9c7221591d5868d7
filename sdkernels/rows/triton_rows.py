"""Row passes by the Triton kernels of `sdkernels.kernels`: CUDA, ROCm, XPU, and the interpreter.

`forward` reads both slabs once (JSD and the clipped KL a second time) and leaves them as they are;
`backward` reads them once more and writes the gradient over the student's slab, or beside it in
`spec.gradient_dtype`. Results do not depend on the number of tokens of a chunk.

Shape letters: C tokens of the chunk, V vocabulary, K chosen or top-k ids per token, N numbers kept
per row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdkernels.kernels.gradient import logit_gradient
from sdkernels.kernels.launch import Logits
from sdkernels.kernels.mixture import mixture_parts, mixture_statistics
from sdkernels.kernels.rescale import rescale
from sdkernels.kernels.statistics import partial_statistics, statistics_parts
from sdkernels.rows.fused_rows import FusedRows
from sdkernels.rows.interface import RowGate, RowSpec, Side, slab_columns
from sdkernels.rows.lists import side_by_side, split_lists
from sdkernels.rows.partials import Partials
from sdkernels.rows.triton_merge import columns, merged

# Rows whose logits are copied at once to find a top-k support: 8 MiB of float32.
TOPK_ELEMENTS = 1 << 21


@dataclass
class _State:
    """What `backward` needs: both slabs and the numbers per row."""

    student: Side
    logits: Logits
    teacher_logits: Logits | None
    spec: RowSpec
    rows_CN: Tensor
    chosen_CK: Tensor | None
    support_CK: Tensor | None


class TritonRows:
    """Row backend on the Triton kernels; see the module's docstring.

    Raises:
        TypeError: float64, which the kernels don't compute in.
    """

    name = "triton"
    rescale = staticmethod(rescale)
    fused = FusedRows()

    def scratch_bytes(self, tokens: int, vocab: int, spec: RowSpec) -> int:
        """Bytes of the copy from which a top-k support is taken; partial sums are negligible."""
        return 3 * min(topk_rows_at_once(vocab), max(tokens, 1)) * vocab * 4

    def forward(
        self,
        student: Side,
        teacher: Side | None,
        chosen_CK: Tensor | None,
        support_CK: Tensor | None,
        spec: RowSpec,
        gate: RowGate | None = None,
    ) -> tuple[dict[str, Tensor], _State]:
        """Per-token statistics of the chunk; see `rows.interface`."""
        if spec.compute_dtype != torch.float32:
            raise TypeError(
                f"the Triton kernels compute in float32, {spec.compute_dtype} was asked for: pass "
                "backend='torch', or inputs that are not float64"
            )
        logits = _logits(student)
        teacher_logits = None if teacher is None else _logits(teacher)
        if spec.topk is not None:
            source = student if spec.topk_of == "student" or teacher is None else teacher
            support_CK = _topk(source, spec.topk, spec)
        ids_CK = side_by_side(chosen_CK, support_CK)
        sums = partial_statistics(logits, teacher_logits, columns(ids_CK, spec))
        stats, rows_CN = merged(
            Partials(sums.partials_CFP, sums.chosen_CK, sums.teacher_chosen_CK),
            student.raw_CV.shape[1],
            ids_CK,
            spec,
            gate,
            statistics_parts,
        )
        if teacher_logits is not None and not (spec.jsd_beta is None and spec.entry_clip is None):
            shard = spec.shard
            stats |= mixture_statistics(
                logits,
                teacher_logits,
                rows_CN,
                jsd_beta=spec.jsd_beta,
                entry_clip=spec.entry_clip,
                join=None if shard is None else lambda sums: shard.join_sums(sums, mixture_parts),
            )
        split_lists(stats, chosen_CK, support_CK)
        state = _State(student, logits, teacher_logits, spec, rows_CN, chosen_CK, support_CK)
        return stats, state

    def backward(self, state: Any, coefs: dict[str, Tensor]) -> Tensor:
        """Gradient with respect to the raw student logits, `[C, V]`."""
        raw_CV, spec = state.student.raw_CV, state.spec
        dtype = spec.gradient_dtype or raw_CV.dtype
        in_place = state.student.owned and dtype == raw_CV.dtype and raw_CV.stride(-1) == 1
        out_CV = raw_CV
        if not in_place:
            tokens, vocab = raw_CV.shape
            out_CV = raw_CV.new_empty(tokens, slab_columns(vocab), dtype=dtype)[:, :vocab]
        per_row = {
            name: coef.float().contiguous() for name, coef in coefs.items() if coef.dim() == 1
        }
        plain = per_row.pop("lse", None)
        ids_CK = ids_coef_CK = None
        lists = {"logp": state.chosen_CK, "topk_logp": state.support_CK}
        listed = [name for name in lists if name in coefs]
        for name in listed:
            ids_CK = side_by_side(ids_CK, lists[name])
            ids_coef_CK = side_by_side(ids_coef_CK, coefs[name].float())
            taken = coefs[name].float().sum(-1)
            plain = -taken if plain is None else plain - taken
        if plain is not None:
            per_row["plain"] = plain
        logit_gradient(
            state.logits,
            state.teacher_logits,
            state.rows_CN,
            per_row,
            out_CV,
            ids_CK=columns(ids_CK, spec),
            ids_coef_CK=ids_coef_CK,
            jsd_beta=spec.jsd_beta,
            entry_clip=spec.entry_clip,
            out_padded=state.student.padded or not in_place,
        )
        return out_CV


def _logits(side: Side) -> Logits:
    return Logits.of(
        side.raw_CV,
        side.bias_V,
        scale=side.scale,
        softcap=side.softcap,
        temperature=side.temperature,
        padded=side.padded,
    )


def topk_rows_at_once(vocab: int) -> int:
    """Rows whose top-k one call of torch.topk finds."""
    return max(1, TOPK_ELEMENTS // max(vocab, 1))


def _topk(side: Side, k: int, spec: RowSpec) -> Tensor:
    """Ids of the k largest logits of each row, largest first, `[C, k]`.

    Temperature is positive and the softcap increasing, so neither changes the order.
    """
    values, places = [], []
    for raw_RV in side.raw_CV.split(topk_rows_at_once(side.raw_CV.shape[1])):
        z_RV = raw_RV.float()
        if side.bias_V is not None:
            z_RV = z_RV + side.bias_V
        if side.scale < 0:
            z_RV = -z_RV
        found = z_RV.topk(min(k, z_RV.shape[1]), dim=-1)
        values.append(found.values)
        places.append(found.indices)
    if spec.shard is None:
        return torch.cat(places)
    return spec.shard.topk(torch.cat(values), torch.cat(places), k)
