"""Tables that split a run's tokens and rollouts: by verdict, by kind of token, by way to count
markers.
"""

from __future__ import annotations

from collections.abc import Sequence

from sdkernels.report.fields import Column, percent, signed
from sdkernels.report.load import Run
from sdkernels.report.tables import table
from sdkernels.report.text import number

_GAP, _NEGATIVE = "Gap, nats per token", "Negative gaps, % of tokens"
_LENGTH, _DOUBT = "Length, tokens", "Markers per 1,000 tokens"

BY_VERDICT = (
    Column(_GAP, "correct", "", ("mean", "gap_correct"), signed),
    Column(_GAP, "wrong", "", ("mean", "gap_wrong"), signed),
    Column(_NEGATIVE, "correct", "", ("mean", "gap_negative_share_correct"), percent),
    Column(_NEGATIVE, "wrong", "", ("mean", "gap_negative_share_wrong"), percent),
    Column(_LENGTH, "correct", "", ("mean", "completion_length_correct"), number),
    Column(_LENGTH, "wrong", "", ("mean", "completion_length_wrong"), number),
    Column(_DOUBT, "correct", "", ("mean", "markers_per_1k_correct"), number),
    Column(_DOUBT, "wrong", "", ("mean", "markers_per_1k_wrong"), number),
)
_KL, _SIZE, _SHARE = "KL(teacher, student), nats", "Size of the gap, nats", "Share of tokens, %"
BY_KIND = tuple(
    Column(group, kind, "", ("mean", key.format(kind)), show)
    for group, key, show in (
        (_KL, "kl_{}", number),
        (_SIZE, "gap_abs_{}", number),
        (_SHARE, "{}_share", percent),
    )
    for kind in ("math", "style", "other")
)
_RATES = (("per_response", "response"), ("per_1k_tokens", "1,000 tokens"), ("per_word", "word"))
_COUNTS = (("markers", "Whole words"), ("markers_published", "E(y) as published"))
EVALUATED_MARKERS = tuple(
    Column(f"{said} {when} training", f"per {unit}", "", (when, key, rate), number)
    for when in ("before", "after")
    for key, said in _COUNTS
    for rate, unit in _RATES
)
TRAINED_MARKERS = tuple(
    Column(f"{said} in training rollouts", f"per {unit}", "", ("mean", f"{key}_{rate}"), number)
    for key, said in _COUNTS
    for rate, unit in (("per_response", "response"), ("per_1k", "1,000 tokens"), _RATES[2])
)


def by_verdict(runs: Sequence[Run]) -> str:
    """Return the table of correct against wrong rollouts."""
    return _table(runs, BY_VERDICT) or _empty("No step recorded its rollouts by verdict.")


def by_kind(runs: Sequence[Run]) -> str:
    """Return the table of math, style and other tokens."""
    return _table(runs, BY_KIND) or _empty("No step recorded its tokens by kind.")


def markers(runs: Sequence[Run]) -> str:
    """Return the marker tables: evaluations before and after training, then the rollouts."""
    shown = [_table(runs, columns) for columns in (EVALUATED_MARKERS, TRAINED_MARKERS)]
    return "".join(shown) or _empty("No run recorded how it counted markers.")


def _table(runs: Sequence[Run], columns: Sequence[Column]) -> str:
    """Return the table, or nothing if no run has any of the values."""
    records = [run.record for run in runs]
    cells = [[column.cell(record) for column in columns] for record in records]
    if all(cell.state == "missing" for row in cells for cell in row):
        return ""
    return table(runs, columns, cells, made_of=False)


def _empty(why: str) -> str:
    return f'<p class="empty">{why}</p>'
