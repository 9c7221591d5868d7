"""Large buffers on Linux in huge pages.

A buffer of a hundred megabytes, taken anew for every call, is 25 thousand page faults of 4 KiB, and
every row of a product then walks the page tables again. The kernel gives 2 MiB pages where it is
asked to; asking is `madvise`, as torch does for all of its memory under THP_MEM_ALLOC_ENABLE=1.
"""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

HUGE_PAGE = 2 << 20
# Absent on other systems, which have no such advice.
ADVICE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)


def large_empty(
    shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """`torch.empty`, in huge pages where it is large, on the CPU, and the system has them."""
    tensor = torch.empty(shape, dtype=dtype, device=device)
    if tensor.device.type == "cpu" and tensor.nbytes >= HUGE_PAGE:
        ask_for_huge_pages(tensor)
    return tensor


def ask_for_huge_pages(tensor: Tensor) -> bool:
    """Advise the kernel about the memory of a CPU tensor; whether it took the advice.

    Nothing but speed hangs on the answer: a kernel built without huge pages refuses.
    """
    if ADVICE is None:
        return False
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (tensor.data_ptr() + tensor.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return bool(madvise(start, length, ADVICE) == 0)
