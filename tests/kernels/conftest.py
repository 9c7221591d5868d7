"""Kernel tests run on NaN-filled memory."""

from helpers.poison import poisoned_memory

__all__ = ["poisoned_memory"]
