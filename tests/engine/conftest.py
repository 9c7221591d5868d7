"""Engine tests run on NaN-filled memory: what the engine forgets to write shows."""

from helpers.poison import poisoned_memory

__all__ = ["poisoned_memory"]
