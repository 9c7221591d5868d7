"""Benchmarks: every peer on the same tensors in one process, against the bare matrix products."""
