"""What the tokens of a step tell: means, shares by correctness, kinds of tokens, entropy deciles.

Everything is a sum with a count, so that it merges over micro-batches and ranks, and stays on the
device: nothing here waits for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdkernels.engine import TokenStats
from sdkernels.train.batch import MicroBatch
from sdkernels.train.step_metrics import DECILES, StepMetrics
from sdkernels.train.token_kinds import KINDS, TokenKinds

# The top fifth of a response's tokens by entropy, where it forks (80/20 rule of DASD 2605.22263).
_TOP_DECILE = 8


class TokenMetrics:
    """Adds the statistics of a micro-batch's tokens to the metrics of the step.

    Args:
        metrics: collects the sums.
        tokenizer: tells the kinds of tokens apart.
    """

    def __init__(self, metrics: StepMetrics, tokenizer: Any) -> None:
        self.metrics = metrics
        self.kinds = TokenKinds(tokenizer)

    def add(self, batch: MicroBatch, stats: TokenStats) -> None:
        """Add the tokens that are in the loss; a statistic that the recipe did not ask for is left
        out.
        """
        keep_N = batch.keep_N
        told_N = told(batch)
        self.metrics.add("num_tokens", keep_N.sum())
        values = {
            name: stats[name]
            for name in ("entropy", "teacher_entropy", "kl_teacher_student", "direction")
            if name in stats
        }
        if "teacher_logp" in stats:
            values["gap"] = stats.teacher_logp - stats.logp
            self._add("gap_abs", values["gap"].abs(), told_N)
            self._add_negative(batch, values["gap"])
        for name, value_N in values.items():
            self._add(name, value_N, keep_N if name == "entropy" else told_N)
        if "direction" in values:
            self._add("push_share", (values["direction"] < 0).float(), told_N)
        self._add_by_kind(batch, values)
        self._add_by_entropy(batch, values)

    def _add(self, name: str, value_N: Tensor, mask_N: Tensor) -> None:
        total = torch.where(mask_N, value_N, 0.0).sum(dtype=torch.float32).double()
        self.metrics.add(name, total, mask_N.sum())

    def _add_negative(self, batch: MicroBatch, gap_N: Tensor) -> None:
        """Gap and share of negative gaps, of all tokens and by the verdict on their rollout."""
        negative_N = (gap_N < 0).float()
        told_N = told(batch)
        self._add("gap_negative_share", negative_N, told_N)
        for name, mask_N in by_verdict(batch).items():
            mask_N = mask_N & told_N
            self._add(f"gap_{name}", gap_N, mask_N)
            self._add(f"gap_negative_share_{name}", negative_N, mask_N)

    def _add_by_kind(self, batch: MicroBatch, values: dict[str, Tensor]) -> None:
        ids = [token for row in batch.rows for token in row.response_ids]
        kind_N = torch.tensor(self.kinds(ids), device=batch.keep_N.device)
        for index, kind in enumerate(KINDS):
            mask_N = batch.keep_N & (kind_N == index)
            self._add(f"{kind}_share", mask_N.float(), batch.keep_N)
            if "kl_teacher_student" in values:
                self._add(f"kl_{kind}", values["kl_teacher_student"], mask_N & told(batch))
            if "gap" in values:
                self._add(f"gap_abs_{kind}", values["gap"].abs(), mask_N & told(batch))

    def _add_by_entropy(self, batch: MicroBatch, values: dict[str, Tensor]) -> None:
        for name in ("entropy", "teacher_entropy"):
            if name in values:
                decile_N = entropy_deciles(values[name], batch)
                seen_N = batch.keep_N if name == "entropy" else told(batch)
                top_N = seen_N & (decile_N >= _TOP_DECILE) & (decile_N < DECILES)
                self._add(f"{name}_top20", values[name], top_N)
        if "entropy" not in values:
            return
        size_B = response_sizes(batch)
        is_short_B = (size_B > 0) & (size_B < DECILES)
        self.metrics.add("short_response_share", is_short_B.sum(), (size_B > 0).sum())
        decile_N = entropy_deciles(values["entropy"], batch)
        for name in ("entropy", "gap", "direction"):
            if name in values:
                seen_N = batch.keep_N if name == "entropy" else told(batch)
                totals_K, counts_K = decile_sums(
                    values[name], torch.where(seen_N, decile_N, DECILES)
                )
                self.metrics.add(f"{name}_by_entropy_decile", totals_K, counts_K)


def told(batch: MicroBatch) -> Tensor:
    """Counting tokens `[N]` whose teacher had a context: with a verifier's advantage the others
    count too, and what their teacher says is not the method's. All tokens of a response or none.
    """
    if batch.teacher is None or batch.signal_N is None:
        return batch.keep_N
    return batch.keep_N & (batch.signal_N != 0)


def by_verdict(batch: MicroBatch) -> dict[str, Tensor]:
    """Masks `[N]` of the counting tokens of rollouts verified `correct` and found `wrong`; those
    that were not judged are in neither.
    """
    verdicts = [row.rollout.success for row in batch.rows]
    masks = {}
    for name, wanted in (("correct", True), ("wrong", False)):
        row_B = torch.tensor([verdict is wanted for verdict in verdicts])
        masks[name] = batch.keep_N & row_B.to(batch.row_N.device)[batch.row_N]
    return masks


def response_sizes(batch: MicroBatch) -> Tensor:
    """Counting tokens of each response, int64 `[B]`."""
    size_B = torch.zeros(len(batch.rows), dtype=torch.int64, device=batch.row_N.device)
    return size_B.index_add_(0, batch.row_N, batch.keep_N.long())


def entropy_deciles(entropy_N: Tensor, batch: MicroBatch) -> Tensor:
    """Tenth of its own response that each token is in by entropy, int64 `[N]`: 0 the surest tokens.

    Within a response, because a gate's threshold is the response's own (DASD) and because the
    result must not depend on what a token shares a micro-batch with. Ties go by position, and a
    token stands for the middle of its rank, so that neither end has less where the length is no
    multiple of ten. Tokens that do not count get `DECILES`, and so do those of responses with fewer
    than `DECILES` of them, which would fill some tenths and not others.
    """
    keep_N = batch.keep_N & (response_sizes(batch) >= DECILES)[batch.row_N]
    num_rows = len(batch.rows)
    # Left-out tokens form a last row of their own.
    row_N = torch.where(keep_N, batch.row_N, num_rows)
    order_N = torch.argsort(entropy_N.detach(), stable=True)
    order_N = order_N[torch.argsort(row_N[order_N], stable=True)]
    size_R = torch.zeros(num_rows + 1, dtype=torch.int64, device=row_N.device)
    size_R.index_add_(0, row_N, torch.ones_like(row_N))
    start_R = size_R.cumsum(0) - size_R
    rank_N = torch.empty_like(row_N)
    rank_N[order_N] = torch.arange(len(row_N), device=row_N.device) - start_R[row_N[order_N]]
    return torch.where(keep_N, DECILES * (2 * rank_N + 1) // (2 * size_R[row_N]), DECILES)


def decile_sums(value_N: Tensor, decile_N: Tensor) -> tuple[Tensor, Tensor]:
    """Sums and counts of `value_N` by decile, `[10]` each."""
    totals = torch.zeros(DECILES + 1, dtype=torch.float64, device=value_N.device)
    counts = torch.zeros_like(totals)
    # Left-out tokens may hold anything; they land in an extra place that is cut off.
    totals.index_add_(0, decile_N, value_N.detach().double())
    counts.index_add_(0, decile_N, torch.ones_like(value_N, dtype=torch.float64))
    return totals[:DECILES], counts[:DECILES]
