"""Huge pages: asked for where buffers are large, on the CPU; never anything but advice."""

import re
from pathlib import Path

import pytest
import torch

from sdkernels.rows import pages
from sdkernels.rows.pages import HUGE_PAGE, ask_for_huge_pages, large_empty

SMAPS = Path("/proc/self/smaps")
HAS_THEM = Path("/sys/kernel/mm/transparent_hugepage").exists() and SMAPS.exists()
linux = pytest.mark.skipif(not HAS_THEM, reason="no Linux with transparent huge pages")


def flags_at(address: int) -> list[str]:
    """Flags of the mapping that has the address, as Linux tells them ("hg": huge pages advised)."""
    inside = False
    for line in SMAPS.read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"no mapping has {address:#x}")


@linux
def test_large_buffers_are_advised_and_small_ones_are_not() -> None:
    large = large_empty((64 * HUGE_PAGE,), dtype=torch.uint8, device="cpu")
    middle = large.data_ptr() + large.nbytes // 2
    assert "hg" in flags_at(middle)
    plain = torch.empty(64 * HUGE_PAGE, dtype=torch.uint8)
    assert "hg" not in flags_at(plain.data_ptr() + plain.nbytes // 2)
    assert ask_for_huge_pages(plain)


def test_the_buffer_is_what_torch_would_make(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(pages, "ask_for_huge_pages", lambda tensor: asked.append(tensor.nbytes))
    for shape, dtype in (((0, 5), torch.float32), ((3, 1 << 20), torch.bfloat16)):
        made = large_empty(shape, dtype=dtype, device="cpu")
        assert (made.shape, made.dtype, made.is_contiguous()) == (shape, dtype, True)
        assert made.untyped_storage().resizable()
    assert asked == [3 * 2 << 20]
    large_empty((1 << 30,), dtype=torch.float32, device="meta")
    assert len(asked) == 1


def test_systems_without_the_advice_go_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "ADVICE", None)
    assert not ask_for_huge_pages(torch.empty(HUGE_PAGE))
