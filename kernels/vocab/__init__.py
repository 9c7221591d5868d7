"""Device code that reduces over the vocabulary, imported as `sdkernels.kernels`.

No Triton kernel is shipped yet: this package holds the place in the layout (and in the wheel) that
they will take. Until then every row pass runs in `sdkernels.rows`, in plain torch. Code in this
package imports torch, triton and its own siblings by relative import, nothing else.
"""

__all__ = ["unavailable_reason"]


def unavailable_reason() -> str | None:
    """Why the Triton backend can't run here, in one line; `None` would mean that it can."""
    return "this version of sdkernels ships no Triton kernel yet"
