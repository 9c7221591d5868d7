"""The program that runs math-verify in a process of its own, for `sdkernels.train.math_check`.

Reads one JSON object a line, `{"reference": ..., "answer": ..., "limit_seconds": ...}`, and writes
one, `{"parsed": bool, "equal": bool}`. It is run as a file, so that it does not load torch.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

MEMORY_BYTES = 4 * 2**30

# What sympy's tokenizer makes of a number.
_LITERAL = re.compile(
    r"\s*(?:Integer \((\d+) \)|Float \('([\d.]+(?:[eE][-+]?\d{1,3})?)' \))\s*", re.ASCII
)


def main() -> None:
    """Serve requests until the standard input ends."""
    # This folder must not stand in for modules of other packages (`data`, `verify`, ...).
    sys.path[:] = [p for p in sys.path if os.path.abspath(p) != os.path.dirname(__file__)]
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not look like a reply
    try:
        compare = _load()
    except ImportError as error:
        print(json.dumps({"ready": False, "error": str(error)}), file=out, flush=True)
        return
    _limit_memory()
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if hasattr(signal, "setitimer"):
            # Ends this process even if the one that would kill it is gone.
            signal.setitimer(signal.ITIMER_REAL, 2 * request["limit_seconds"] + 1)
        reply = compare(request["reference"], request["answer"])
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), file=out, flush=True)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not a Unix: the time limit alone has to do
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _load() -> Callable[[str, str], dict[str, bool]]:
    import logging

    # Evaluates the names of its own units when it is loaded, so before the change below.
    import sympy.physics.units  # type: ignore[import-untyped]
    from math_verify import LatexExtractionConfig, parse, verify
    from sympy.parsing import sympy_parser  # type: ignore[import-untyped]

    logging.disable(logging.CRITICAL)

    def number(code: str, *namespaces: object) -> Any:
        """Build the one literal that `code` holds, in place of evaluating it."""
        match = _LITERAL.fullmatch(code)
        if match is None:
            raise ValueError(f"not a number: {code!r}")
        return sympy.Integer(int(match[1])) if match[1] else sympy.Float(match[2])

    # The LaTeX grammar hands the numbers that it finds to sympy's string parser, which ends in
    # `eval`. This keeps the numbers and refuses whatever else might arrive there.
    sympy_parser.eval_expr = number
    config = [LatexExtractionConfig()]

    def read(text: str) -> list[Any]:
        return list(parse(f"${text}$", config, fallback_mode="no_fallback", parsing_timeout=None))

    def compare(reference: str, answer: str) -> dict[str, bool]:
        try:
            gold, found = read(reference), read(answer)
            equal = bool(gold and found) and bool(verify(gold, found, timeout_seconds=None))
        except (Exception, RecursionError, MemoryError):
            return {"parsed": False, "equal": False}
        return {"parsed": bool(found), "equal": equal}

    return compare


if __name__ == "__main__":
    main()
