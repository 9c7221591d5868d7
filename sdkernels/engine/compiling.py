"""What torch.compile sees of functions that call back into Python: one graph break, nothing inside.

`token_loss` runs the caller's loss function between the passes over a chunk and forms gradients as
it goes. Traced, that would fall into dozens of pieces; like this the graph before and the graph
after stay whole.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def one_graph_break(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`function`, run eagerly where it is called inside of a compiled function."""

    @functools.wraps(function)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if torch.compiler.is_compiling():
            # Not as a decorator: that would import the compiler, which takes longer than torch.
            eager: Callable[Arguments, Result] = torch.compiler.disable(function)
            return eager(*args, **kwargs)
        return function(*args, **kwargs)

    return run
