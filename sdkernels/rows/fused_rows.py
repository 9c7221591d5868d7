"""Statistics of one model without its logits in memory, by the fused kernel of
`sdkernels.kernels.linear_statistics`.

Shape letters: T tokens, C tokens of the chunk, V vocabulary, D hidden, K chosen ids per token.
"""

from __future__ import annotations

from torch import Tensor

from sdkernels.kernels.configs import MOST_IDS
from sdkernels.kernels.linear_statistics import linear_partial_statistics, most_linear_parts
from sdkernels.kernels.partials import STUDENT_FIELDS
from sdkernels.rows.interface import RowGate, RowSpec, Side
from sdkernels.rows.partials import Partials
from sdkernels.rows.triton_merge import columns, merged


class FusedRows:
    """`rows.interface.FusedBackend` on Triton."""

    def refusal(self, hidden_TD: Tensor, weight_VD: Tensor, ids: int) -> str | None:
        """What the fused kernel does not take: mixed dtypes, many ids, a small GPU."""
        if hidden_TD.dtype != weight_VD.dtype:
            return (
                f"hidden is {hidden_TD.dtype}, the head's weight {weight_VD.dtype}; the fused "
                "kernel takes one dtype for both"
            )
        if ids > MOST_IDS:
            return f"{ids} ids a token; the fused kernel takes at most {MOST_IDS}"
        try:
            _linear_parts(weight_VD, weight_VD.shape[0])
        except ValueError as error:  # too little shared memory
            return str(error)
        return None

    def token_bytes(self, weight_VD: Tensor, spec: RowSpec) -> int:
        """Partial sums, twice where slices of a vocabulary are joined."""
        slices = 1 if spec.shard is None else 1 + len(spec.shard.sizes)
        rows = weight_VD.shape[0] if spec.shard is None else spec.shard.widest
        return slices * 4 * STUDENT_FIELDS * _linear_parts(weight_VD, rows)

    def forward(
        self,
        hidden_CD: Tensor,
        weight_VD: Tensor,
        transforms: Side,
        chosen_CK: Tensor | None,
        spec: RowSpec,
        gate: RowGate | None = None,
    ) -> dict[str, Tensor]:
        """Statistics of one model, matrix product and reduction in one kernel."""
        sums = linear_partial_statistics(
            hidden_CD,
            weight_VD,
            transforms.bias_V,
            scale=transforms.scale,
            softcap=transforms.softcap,
            temperature=transforms.temperature,
            ids_TK=columns(chosen_CK, spec),
        )
        stats, _ = merged(
            Partials(sums.partials_CFP, sums.chosen_CK, None),
            weight_VD.shape[0],
            chosen_CK,
            spec,
            gate,
            lambda rows: _linear_parts(weight_VD, rows),
        )
        return stats


def _linear_parts(weight_VD: Tensor, rows: int) -> int:
    return most_linear_parts(weight_VD.device, weight_VD.dtype, rows)
