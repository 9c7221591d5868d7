"""Per-token losses over the exact full vocabulary without a `[tokens, vocab]` tensor."""

from sdkernels._version import __version__

__all__ = ["__version__"]
