"""The lab: a small world in which the phenomena of self-distillation can be measured.

A transformer of a million parameters is trained from scratch on procedurally made problems whose
traces hold guesses, `wait`, checks and corrections, and then trained on its own rollouts under
every context and recipe. docs/lab.md describes the world and what was found.
"""

from __future__ import annotations

from sdkernels.lab.scales import SCALES, Scale

__all__ = ["SCALES", "Scale"]
