"""Gates whose thresholds are quantiles of the student's entropies, or fixed numbers of nats.

Shape letters: B sequences, L tokens, R rows of tokens that share a threshold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdkernels.gates.bound import BoundGate, Rule
from sdkernels.gates.settings import at_least_1, is_finite, nats, scope_of, share_of, word
from sdkernels.gates.thresholds import expand, full, quantile_of, rows_of, valid_entropies

READINGS = ("top", "literal")
SIGMAS = ("mean_abs_deviation", "mean_abs_deviation_from_tau", "std")
SIGMA_EPS_NATS = 1e-6


class EntropySign:
    """Hard gate: +1 (pull) where H <= tau, -1 (push) above. The ablation of DASD (2605.22263).

    Args:
        tau: threshold in nats, the same for all tokens. Needs no entropies.
        quantile: tau is this quantile of the entropies of a sequence or a batch; in [0, 1].
        scope: "fixed" with `tau`; "sequence" (default) or "batch" with `quantile`. A batch is what
            one process sees in one step.
        min_tokens: with `quantile`, sequences (or batches) with fewer tokens get direction 0. The
            quantile of a single token is its own entropy, which would always pull. The trainer
            asks for 8, as `DirectionAdaptive` does.

    Raises:
        ValueError: neither or both of `tau` and `quantile`, a scope or `min_tokens` that does not
            go with them.

    Example:
        >>> import sdkernels as sd
        >>> entropy = torch.tensor([[0.1, 2.0, 0.3, 9.9]])
        >>> mask = torch.tensor([[True, True, True, False]])
        >>> bound = sd.gates.EntropySign(quantile=0.5).bind(entropy, mask)
        >>> bound.direction(entropy, bound.tau, bound.sigma)[mask]
        tensor([ 1., -1.,  1.])
    """

    rule: Rule = "sign"

    def __init__(
        self,
        tau: float | None = None,
        *,
        quantile: float | None = None,
        scope: str | None = None,
        min_tokens: int | None = None,
    ) -> None:
        if (tau is None) == (quantile is None):
            raise ValueError(
                f"tau={tau} with quantile={quantile} is not accepted; give exactly one of the two"
            )
        self.tau = None if tau is None else nats("tau", tau)
        self.quantile = None if quantile is None else share_of("quantile", quantile)
        self.scope = scope_of(scope, fixed=tau is not None)
        if tau is not None and min_tokens is not None:
            raise ValueError(
                f"min_tokens={min_tokens} with a fixed tau is not accepted; it goes with quantile="
            )
        self.min_tokens = at_least_1("min_tokens", 2 if min_tokens is None else min_tokens)

    @property
    def needs_entropy(self) -> bool:
        """False with a fixed tau."""
        return self.quantile is not None

    def bind(self, entropy_BL: Tensor | None, mask_BL: Tensor) -> BoundGate:
        """Thresholds of this batch.

        Args:
            entropy_BL: student entropies in nats; None is enough for a fixed tau. What stands
                outside the mask is ignored, NaN included.
            mask_BL: bool, or 0 / 1; which tokens count.
        """
        if self.tau is not None:
            return BoundGate(self.rule, full(mask_BL, self.tau))
        assert self.quantile is not None  # __init__ takes exactly one of the two
        H_BL, mask = valid_entropies(type(self).__name__, entropy_BL, mask_BL)
        H_RL, mask_RL = rows_of(H_BL, mask, self.scope)
        tau_R = quantile_of(H_RL, mask_RL, self.quantile)
        sigma_R = (mask_RL.sum(dim=-1) >= self.min_tokens).to(tau_R.dtype)
        return BoundGate(self.rule, expand(tau_R, mask_BL), expand(sigma_R, mask_BL))


class DirectionAdaptive:
    """Smooth gate of DASD (2605.22263): tanh((tau - H) / sigma), with tau an entropy quantile.

    No code of DASD is public; `rho = 0.2` and the formula come from a secondary note, and which
    side of the distribution rho counts from is not said. Read literally (20th percentile) tau is
    about 0, since more than a fifth of a language model's tokens have no entropy to speak of, and
    nothing is ever pulled. Default is therefore the other reading: the top 20 % are pushed.

    Args:
        rho: share of tokens, in [0, 1].
        reading: "top": tau = quantile(1 - rho). "literal": tau = quantile(rho).
        scope: quantile and scale over a "sequence" (default), a "batch" (what one process sees in
            one step), or "fixed" (give `tau`, and `sigma` as a number).
        sigma: "mean_abs_deviation" (mean |H - mean H| + 1e-6 nats), "mean_abs_deviation_from_tau"
            (mean |H - tau| + 1e-6), "std" (n - 1, + 1e-6), or a scale in nats.
        min_tokens: sequences (or batches) with fewer tokens get direction 0.
        tau: threshold in nats for scope "fixed"; no entropies are then needed.

    Raises:
        ValueError: an unknown word or a value out of range, or settings that exclude each other.
    """

    rule: Rule = "tanh"

    def __init__(
        self,
        rho: float = 0.2,
        *,
        reading: str = "top",
        scope: str | None = None,
        sigma: str | float = "mean_abs_deviation",
        min_tokens: int = 8,
        tau: float | None = None,
    ) -> None:
        self.rho = share_of("rho", rho)
        self.reading = word("reading", reading, READINGS)
        self.scope = scope_of(scope, fixed=tau is not None)
        self.tau = None if tau is None else nats("tau", tau)
        self.sigma: str | float
        if isinstance(sigma, str):
            self.sigma = word("sigma", sigma, SIGMAS, "or a scale in nats")
        elif not is_finite(sigma) or sigma <= 0:
            raise ValueError(f"sigma={sigma!r} is not accepted; give a scale in nats > 0")
        else:
            self.sigma = float(sigma)
        if tau is not None and isinstance(self.sigma, str):
            raise ValueError(
                f"sigma={sigma!r} with a fixed tau is not accepted; give sigma as a number of nats"
            )
        self.min_tokens = at_least_1("min_tokens", min_tokens)

    @property
    def needs_entropy(self) -> bool:
        """False with a fixed tau."""
        return self.tau is None

    def bind(self, entropy_BL: Tensor | None, mask_BL: Tensor) -> BoundGate:
        """Thresholds and scales of this batch; arguments as in `EntropySign.bind`."""
        if self.tau is not None:
            sigma = full(mask_BL, float(self.sigma))
            return BoundGate(self.rule, full(mask_BL, self.tau), sigma)
        H_BL, mask = valid_entropies(type(self).__name__, entropy_BL, mask_BL)
        H_RL, mask_RL = rows_of(H_BL, mask, self.scope)
        share = self.rho if self.reading == "literal" else 1.0 - self.rho
        tau_R = quantile_of(H_RL, mask_RL, share)
        enough_R = mask_RL.sum(dim=-1) >= self.min_tokens
        sigma_R = torch.where(enough_R, self._scale(H_RL, mask_RL, tau_R), 0.0)
        return BoundGate(self.rule, expand(tau_R, mask_BL), expand(sigma_R, mask_BL))

    def _scale(self, H_RL: Tensor, mask_RL: Tensor, tau_R: Tensor) -> Tensor:
        if not isinstance(self.sigma, str):
            return torch.full_like(tau_R, self.sigma)
        count_R = mask_RL.sum(dim=-1).clamp(min=1)
        centre_R = H_RL.sum(dim=-1) / count_R
        if self.sigma == "mean_abs_deviation_from_tau":
            centre_R = tau_R
        deviation_RL = torch.where(mask_RL, H_RL - centre_R.unsqueeze(-1), 0.0)
        if self.sigma == "std":
            spread_R = (deviation_RL.square().sum(dim=-1) / (count_R - 1).clamp(min=1)).sqrt()
        else:
            spread_R = deviation_RL.abs().sum(dim=-1) / count_R
        return spread_R + SIGMA_EPS_NATS
