"""A gate whose thresholds are known, and the rule that turns entropies into directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Rule = Literal["sign", "tanh"]


@dataclass(frozen=True)
class BoundGate:
    """A gate whose thresholds are known for every token of a batch.

    Attributes:
        rule: "sign" (+1 where H <= tau, else -1) or "tanh" (tanh((tau - H) / sigma)).
        tau: threshold in nats, shape of the mask; float32 (float64 where the entropies were).
        sigma: scale in nats, same shape; 0 marks tokens without a direction, and that is all that
            "sign" reads of it. None: no scale ("sign" only).
    """

    rule: Rule
    tau: Tensor
    sigma: Tensor | None = None

    def direction(self, entropy: Tensor, tau: Tensor, sigma: Tensor | None) -> Tensor:
        """Direction in [-1, 1] per token, detached, in the dtype of `entropy`.

        Args:
            entropy: student entropies in nats, any shape (a chunk's `[C]`).
            tau: `self.tau` of the same tokens.
            sigma: `self.sigma` of the same tokens.
        """
        return direction(entropy, tau, sigma, rule=self.rule)


class Gate(Protocol):
    """What the engine takes as `gate=`, next to a `BoundGate`."""

    @property
    def needs_entropy(self) -> bool:
        """Whether `bind` needs entropies; the engine then runs a pass without gradient."""

    def bind(self, entropy_BL: Tensor | None, mask_BL: Tensor) -> BoundGate:
        """Thresholds for this batch."""


def direction(entropy: Tensor, tau: Tensor, sigma: Tensor | None, *, rule: Rule = "tanh") -> Tensor:
    """The rule of a `BoundGate` as a function; see there."""
    H = entropy.detach()
    if rule == "sign":
        value = torch.where(tau >= H, 1.0, -1.0).to(H.dtype)
    elif sigma is None:
        raise ValueError("sigma=None is not accepted by the 'tanh' rule; give the scale in nats")
    else:
        # The scale is 0 where there is no direction: any positive number avoids 0 / 0 there.
        value = torch.tanh((tau - H) / torch.where(sigma > 0, sigma, 1.0)).to(H.dtype)
    return value if sigma is None else torch.where(sigma > 0, value, 0.0).to(H.dtype)
