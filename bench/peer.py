"""What a peer is, and the reasons for which one cannot run here."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .problem import Problem, Setting

# Returns the loss summed over tokens, with a graph, or without one where the gradients are filled
# in already; for the forward-only case the pair (log-probs, entropies), each [T].
Call = Callable[[Problem], "Tensor | tuple[Tensor, Tensor]"]
# Why it cannot run in this setting, None if it can.
Reason = Callable[[Setting], "str | None"]


@dataclass(frozen=True)
class Peer:
    """Another way to compute some of the cases.

    Attributes:
        calls: by the name of the case. The inputs need no transfer, cast or copy before.
        unavailable: why it cannot run in a setting.
        logits_copies: how many whole [T, V] float32 tensors it holds at once; 0 if it works in
            chunks. Keeps a machine from being filled up.
    """

    name: str
    title: str
    calls: Mapping[str, Call]
    unavailable: Reason = lambda setting: None
    logits_copies: float = 0.0

    def why_not(self, setting: Setting, available_bytes: int | None) -> str | None:
        """Reason not to run it, None if it can run."""
        if setting.case.name not in self.calls:
            return f"it has no {setting.case.title}; it has {', '.join(self.calls)}"
        needed = 4.0 * self.logits_copies * setting.tokens * setting.shape.vocab
        if available_bytes is not None and needed > 0.9 * available_bytes:
            return (
                f"whole logits take about {needed / 2**30:.0f} GiB here, "
                f"{available_bytes / 2**30:.0f} GiB are free"
            )
        return self.unavailable(setting)


def first_of(*reasons: Reason) -> Reason:
    """The first reason that applies."""

    def reason(setting: Setting) -> str | None:
        return next((why for each in reasons if (why := each(setting)) is not None), None)

    return reason


def importable(module: str, package: str) -> Reason:
    """`module` of pip package `package` can be imported."""

    def reason(_: Setting) -> str | None:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            missing = (error.name or "").split(".")[0]
            if missing == module.split(".")[0]:
                return f"{package} is not installed"
            return f"{package} cannot be imported: {error}"
        except Exception as error:  # packages without a GPU, or with another torch, raise anything
            return f"{package} cannot be imported: {type(error).__name__}: {one_line(error)}"
        return None

    return reason


def on_gpu(setting: Setting) -> str | None:
    """It has kernels for GPUs only."""
    return None if setting.device.type == "cuda" else "runs on GPUs only"


def on_cpu(setting: Setting) -> str | None:
    """It is for CPUs only."""
    return None if setting.device.type == "cpu" else "runs on CPUs only"


def in_16_bit(setting: Setting) -> str | None:
    """It takes bfloat16 and float16 only."""
    return None if setting.dtype.itemsize == 2 else "takes bfloat16 and float16 only"


def can_compile(setting: Setting) -> str | None:
    """torch.compile needs a C++ compiler for CPU code."""
    if setting.device.type != "cpu" or any(map(shutil.which, ("c++", "g++", "clang++"))):
        return None
    return "torch.compile needs a C++ compiler (g++ or clang++) on CPU"


def one_line(error: Any, most: int = 160) -> str:
    """Message of an error, shortened."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else text[: most - 3] + "..."
