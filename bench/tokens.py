"""Per-token inputs of the cases."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """One value a token, `[T]` each.

    Attributes:
        targets: sampled ids, int64.
        logp_weight, entropy_weight: what the case log-prob + entropy is multiplied by.
        adv: verifier's advantage, one value a sequence repeated over its tokens.
        old_logp: log-prob under the policy that sampled, nats: the current one give or take 0.3.
        tau, sigma: threshold and scale of the entropy gate, nats.
        gap_scale: typical size of log T(y) - log S(y), nats; 1 without a teacher.
    """

    targets: Tensor
    logp_weight: Tensor
    entropy_weight: Tensor
    adv: Tensor
    old_logp: Tensor
    tau: Tensor
    sigma: Tensor
    gap_scale: Tensor

    def rows(self, lo: int, hi: int) -> Tokens:
        """Tokens lo..hi."""
        return Tokens(**{name: value[lo:hi] for name, value in self.items()})

    def double(self) -> Tokens:
        """Everything but the ids in float64."""
        return Tokens(
            **{
                name: value.double() if value.is_floating_point() else value
                for name, value in self.items()
            }
        )

    def clone(self) -> Tokens:
        """The same values in other memory."""
        return Tokens(**{name: value.clone() for name, value in self.items()})

    def items(self) -> list[tuple[str, Tensor]]:
        """Name and tensor of each."""
        return [(field.name, getattr(self, field.name)) for field in fields(self)]
