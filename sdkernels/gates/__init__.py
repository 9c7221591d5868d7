"""Entropy gates: which tokens are pulled towards the teacher and which are pushed away from it.

A gate turns the student's entropy H of a token (nats) into a direction: positive pulls, negative
pushes, 0 leaves the token alone. Its threshold tau and scale sigma may depend on a whole sequence
or batch, so a gate is bound to a batch first; the direction of a token then needs that token only:

    bound = gate.bind(entropy_BL, mask_BL)
    direction = bound.direction(entropy, tau, sigma)

`Schmitt` alone looks at whole optimisation steps: it is one switch for all tokens.

Nothing here carries a gradient. Shape letters: B sequences, L tokens; a single row `[L]` is one
sequence. Sequences packed into one row must be bound before packing: the packed thresholds then go
into `dataclasses.replace(bound, tau=..., sigma=...)`.
"""

from sdkernels.gates.bound import BoundGate, Gate, Rule, direction
from sdkernels.gates.entropy import READINGS, SIGMA_EPS_NATS, SIGMAS, DirectionAdaptive, EntropySign
from sdkernels.gates.gap import GAP_LIMIT_NATS, gap_scale
from sdkernels.gates.schmitt import Schmitt
from sdkernels.gates.settings import SCOPES

__all__ = [
    "GAP_LIMIT_NATS",
    "READINGS",
    "SCOPES",
    "SIGMAS",
    "SIGMA_EPS_NATS",
    "BoundGate",
    "DirectionAdaptive",
    "EntropySign",
    "Gate",
    "Rule",
    "Schmitt",
    "direction",
    "gap_scale",
]
