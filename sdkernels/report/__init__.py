"""Reports over finished (or killed) runs: one self-contained HTML page, PNG plots, a terminal
table.

`build` turns a run folder, or a study folder that holds several, into `report.html`.
`terminal_table` prints the same condition table as plain text. Both read what `sdkernels.train`
writes and nothing else, and both say what they could not read instead of guessing or failing.
"""

from sdkernels.report.study import build
from sdkernels.report.terminal import terminal_table

__all__ = ["build", "terminal_table"]
