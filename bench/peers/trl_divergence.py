"""TRL 1.16, `trl.kernels.chunked_divergence` at beta 0 (KL(T||S)), on its torch path."""

from bench.case import Case
from bench.peers import missing

TITLE = "TRL chunked divergence"


def unavailable() -> str | None:
    """Reason when TRL is not installed."""
    return missing("trl.kernels.chunked_divergence")


def run(case: Case) -> float:
    """Forward and backward."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    divergence_T, _ = ChunkedDivergenceFunction.apply(
        case.hidden_TD,
        case.weight_VD,
        None,
        case.teacher_hidden_TD,
        case.teacher_weight_VD,
        None,
        0.0,
    )
    loss = divergence_T.sum()
    loss.backward()
    return loss.item()
