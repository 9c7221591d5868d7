"""The same with `compiled=True`, Liger's own default."""

import shutil

from bench.case import Case
from bench.peers import liger_jsd

TITLE = "Liger chunked JSD, beta 0, compiled"


def unavailable() -> str | None:
    """Reason when Liger or a C++ compiler is missing."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        return "torch.compile on CPU needs a C++ compiler"
    return liger_jsd.unavailable()


def run(case: Case) -> float:
    """Forward and backward."""
    return liger_jsd.run(case, compiled=True)
