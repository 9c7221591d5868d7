"""Reports over finished (or killed) runs: one self-contained HTML page, PNG plots, a terminal
table.

`build` turns a run folder, or a study folder that holds several, into `report.html`; `load_study`
reads it without writing.
`terminal_table` prints the same condition table as plain text, `teacher_table` what the teacher
scores under each context. All read what `sdkernels.train`
writes and nothing else, and both say what they could not read instead of guessing or failing.
"""

from sdkernels.report.study import build, load_study
from sdkernels.report.teacher import teacher_table
from sdkernels.report.terminal import terminal_table

__all__ = ["build", "load_study", "teacher_table", "terminal_table"]
