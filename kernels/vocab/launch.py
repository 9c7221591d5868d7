"""What launchers share: the logits of one model as a kernel takes them, and the device guard."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor

from .transform import factors

# Kernels whose results have to cancel exactly (teacher == student) round every product by itself.
OPTIONS = {"enable_fp_fusion": False, "num_stages": 1}


@dataclass(frozen=True)
class Logits:
    """Raw logits `[C, V]` of one model and the transforms of `transform`. `padded`: V is no
    multiple of 16, and the memory of every row goes on to the next one.
    """

    raw_CV: Tensor
    bias_V: Tensor | None
    pre: float | None
    post: float | None
    padded: bool = False

    @classmethod
    def of(
        cls,
        raw_CV: Tensor,
        bias_V: Tensor | None = None,
        *,
        scale: float = 1.0,
        softcap: float | None = None,
        temperature: float = 1.0,
        padded: bool = False,
    ) -> Logits:
        """Any layout is exact: kernels read rows of any stride, other layouts are copied.

        Raises:
            TypeError: a dtype that the kernels don't read.
        """
        if raw_CV.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise TypeError(
                f"logits have dtype {raw_CV.dtype}: the Triton kernels read float32, bfloat16 and "
                "float16; use backend='torch' for others"
            )
        if raw_CV.shape[1] > 1 and raw_CV.stride(1) != 1:
            raw_CV, padded = raw_CV.contiguous(), False
        pre, post = factors(scale, softcap, temperature)
        bias_V = None if bias_V is None else bias_V.contiguous()
        return cls(raw_CV, bias_V, pre, post, padded and ends_in_a_vector(raw_CV))

    @property
    def stride(self) -> int:
        """Elements from one row to the next."""
        return self.raw_CV.stride(0)


def ends_in_a_vector(rows_CV: Tensor) -> bool:
    """Whether rows are apart by a multiple of 16 elements that is more than they have."""
    stride, vocab = rows_CV.stride(0), rows_CV.shape[1]
    return vocab % 16 != 0 and stride % 16 == 0 and stride > vocab


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Make the tensor's device current: Triton launches on the current one whatever it is given."""
    if tensor.device.type == "cpu":
        return contextlib.nullcontext()
    return torch.get_device_module(tensor.device).device(tensor.device)
