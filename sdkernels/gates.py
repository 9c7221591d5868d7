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

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Rule = Literal["sign", "tanh"]

SCOPES = ("sequence", "batch", "fixed")
READINGS = ("top", "literal")
SIGMAS = ("mean_abs_deviation", "mean_abs_deviation_from_tau", "std")
SIGMA_EPS_NATS = 1e-6
GAP_LIMIT_NATS = 20.0


@dataclass(frozen=True)
class BoundGate:
    """A gate whose thresholds are known for every token of a batch.

    Attributes:
        rule: "sign" (+1 where H <= tau, else -1) or "tanh" (tanh((tau - H) / sigma)).
        tau: threshold in nats, shape of the mask; float32 (float64 where the entropies were).
        sigma: scale in nats, same shape; 0 marks tokens without a direction. None: no scale ("sign"
            only).
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


class EntropySign:
    """Hard gate: +1 (pull) where H <= tau, -1 (push) above. The ablation of DASD (2605.22263).

    Args:
        tau: threshold in nats, the same for all tokens. Needs no entropies.
        quantile: tau is this quantile of the entropies of a sequence or a batch; in [0, 1].
        scope: "fixed" with `tau`; "sequence" (default) or "batch" with `quantile`. A batch is what
            one process sees in one step.

    Raises:
        ValueError: neither or both of `tau` and `quantile`, or a scope that does not go with them.

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
    ) -> None:
        if (tau is None) == (quantile is None):
            raise ValueError(
                f"tau={tau} with quantile={quantile} is not accepted; give exactly one of the two"
            )
        self.tau = None if tau is None else _nats("tau", tau)
        self.quantile = None if quantile is None else _share("quantile", quantile)
        self.scope = _scope(scope, fixed=tau is not None)

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
            return BoundGate(self.rule, _full(mask_BL, self.tau))
        assert self.quantile is not None  # __init__ takes exactly one of the two
        H_BL, mask = _valid_entropies(type(self).__name__, entropy_BL, mask_BL)
        tau = _quantile(*_rows(H_BL, mask, self.scope), self.quantile)
        return BoundGate(self.rule, _expand(tau, mask_BL))


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
        self.rho = _share("rho", rho)
        self.reading = _word("reading", reading, READINGS)
        self.scope = _scope(scope, fixed=tau is not None)
        self.tau = None if tau is None else _nats("tau", tau)
        self.sigma: str | float
        if isinstance(sigma, str):
            self.sigma = _word("sigma", sigma, SIGMAS, "or a scale in nats")
        elif isinstance(sigma, bool) or not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma={sigma} is not accepted; give a scale in nats > 0")
        else:
            self.sigma = float(sigma)
        if tau is not None and isinstance(self.sigma, str):
            raise ValueError(
                f"sigma={sigma!r} with a fixed tau is not accepted; give sigma as a number of nats"
            )
        if min_tokens < 1:
            raise ValueError(f"min_tokens={min_tokens} is not accepted; give a whole number >= 1")
        self.min_tokens = min_tokens

    @property
    def needs_entropy(self) -> bool:
        """False with a fixed tau."""
        return self.tau is None

    def bind(self, entropy_BL: Tensor | None, mask_BL: Tensor) -> BoundGate:
        """Thresholds and scales of this batch; arguments as in `EntropySign.bind`."""
        if self.tau is not None:
            sigma = _full(mask_BL, float(self.sigma))
            return BoundGate(self.rule, _full(mask_BL, self.tau), sigma)
        H_BL, mask = _valid_entropies(type(self).__name__, entropy_BL, mask_BL)
        H_RL, mask_RL = _rows(H_BL, mask, self.scope)
        share = self.rho if self.reading == "literal" else 1.0 - self.rho
        tau_R = _quantile(H_RL, mask_RL, share)
        enough_R = mask_RL.sum(dim=-1) >= self.min_tokens
        sigma_R = torch.where(enough_R, self._scale(H_RL, mask_RL, tau_R), 0.0)
        return BoundGate(self.rule, _expand(tau_R, mask_BL), _expand(sigma_R, mask_BL))

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


class Schmitt:
    """Switch for all tokens at once, with hysteresis, on one mean entropy per optimiser step.

    AntiSD (2605.11609) watches the *teacher's* entropy: off when it falls below `off_ratio` times
    its warm-up value, on again once it is back at `on_ratio` times. With `off_ratio` > `on_ratio`
    it is a ceiling instead: off above, on again at or below. On during warm-up.

    It has a state and looks at one step at a time, so whoever trains feeds it:

        token_loss(..., gate=gate)      # direction 1 (on) or 0 (off)
        gate.update(mean_entropy)       # after the step, for the next one

    Args:
        off_ratio: switches off beyond this multiple of the warm-up median.
        on_ratio: switches on again at this multiple (the paper: 1; its launch script: 1.07).
        warmup_steps: entropies whose median is the reference.

    Raises:
        ValueError: ratios that are not positive or are equal, no warm-up.
    """

    rule: Rule = "sign"
    needs_entropy = False

    def __init__(
        self, off_ratio: float = 0.93, on_ratio: float = 1.0, *, warmup_steps: int = 5
    ) -> None:
        for name, ratio in (("off_ratio", off_ratio), ("on_ratio", on_ratio)):
            if isinstance(ratio, bool) or not (math.isfinite(ratio) and ratio > 0):
                raise ValueError(f"{name}={ratio} is not accepted; give a number > 0")
        if off_ratio == on_ratio:
            raise ValueError(
                f"off_ratio={off_ratio} and on_ratio={on_ratio} leave no hysteresis; give "
                "on_ratio above off_ratio for a floor, below it for a ceiling"
            )
        if isinstance(warmup_steps, bool) or warmup_steps < 1:
            raise ValueError(
                f"warmup_steps={warmup_steps} is not accepted; give a whole number >= 1"
            )
        self.off_ratio, self.on_ratio = float(off_ratio), float(on_ratio)
        self.warmup_steps = warmup_steps
        self.is_on = True
        self._warmup_nats: list[float] = []

    @property
    def reference_nats(self) -> float | None:
        """Median entropy of the warm-up; None until it is over."""
        if len(self._warmup_nats) < self.warmup_steps:
            return None
        return statistics.median(self._warmup_nats)

    def update(self, entropy: float) -> bool:
        """Take the mean entropy of a step, in nats; returns whether the gate is on from now on."""
        entropy = _nats("entropy", entropy)
        reference = self.reference_nats
        if reference is None:
            self._warmup_nats.append(entropy)
            return self.is_on
        # Mirrored, a ceiling is a floor.
        side = 1.0 if self.off_ratio < self.on_ratio else -1.0
        if side * entropy < side * self.off_ratio * reference:
            self.is_on = False
        elif side * entropy >= side * self.on_ratio * reference:
            self.is_on = True
        return self.is_on

    def bind(self, entropy_BL: Tensor | None, mask_BL: Tensor) -> BoundGate:
        """The same direction for every token of this batch: 1 if on, 0 if off."""
        sigma = _full(mask_BL, 1.0 if self.is_on else 0.0)
        return BoundGate(self.rule, _full(mask_BL, math.inf), sigma)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"is_on": self.is_on, "warmup_nats": list(self._warmup_nats)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.is_on = bool(state["is_on"])
        self._warmup_nats = [float(value) for value in state["warmup_nats"]]


def gap_scale(gap_BL: Tensor, mask_BL: Tensor, eps: float = 1e-6) -> Tensor:
    """Typical size of the teacher-student gap of each sequence: mean |gap| + `eps`, in nats.

    DASD divides gaps by it without centring them, which would flip signs.

    Args:
        gap_BL: log T(y) - log S(y), nats. Gaps beyond +-20 count as 20, so that one banned token
            does not flatten its sequence. What stands outside the mask is ignored, NaN included.
        mask_BL: bool, or 0 / 1.
        eps: added to the mean, nats.

    Returns:
        detached, shape of the mask, float32 (float64 for such gaps); `eps` for a sequence without
        tokens.
    """
    _same_shape("gap_BL", gap_BL, mask_BL)
    mask = mask_BL.bool()
    size = _at_least_float32(gap_BL).abs().clamp(max=GAP_LIMIT_NATS)
    total = torch.where(mask, size, 0.0).sum(dim=-1)
    return _expand(total / mask.sum(dim=-1).clamp(min=1) + eps, mask_BL)


def _quantile(H_RL: Tensor, mask_RL: Tensor, share: float) -> Tensor:
    """Linearly interpolated quantile of each row's valid entries `[R]`; 0 where there are none."""
    if H_RL.shape[-1] == 0:
        return H_RL.new_zeros(H_RL.shape[:-1])
    # torch.nanquantile takes at most 16 million elements, which a long batch exceeds.
    ordered_RL = torch.where(mask_RL, H_RL, math.inf).sort(dim=-1).values
    last_R = (mask_RL.sum(dim=-1) - 1).clamp(min=0)
    position_R = share * last_R.double()
    low_R = position_R.floor().long()
    high_R = torch.minimum(low_R + 1, last_R)
    low_value_R = ordered_RL.gather(-1, low_R.unsqueeze(-1)).squeeze(-1)
    high_value_R = ordered_RL.gather(-1, high_R.unsqueeze(-1)).squeeze(-1)
    tau_R = torch.lerp(low_value_R, high_value_R, (position_R - low_R).to(low_value_R.dtype))
    return torch.where(mask_RL.any(dim=-1), tau_R, 0.0)


def _rows(H_BL: Tensor, mask_BL: Tensor, scope: str) -> tuple[Tensor, Tensor]:
    """Entropies and mask with one row for each set of tokens that shares a threshold."""
    if scope == "batch":
        return H_BL.reshape(-1), mask_BL.reshape(-1)
    return H_BL, mask_BL


def _valid_entropies(gate: str, entropy: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Entropies in at least float32, without gradient and 0 outside the mask; the mask as bool."""
    if entropy is None:
        raise ValueError(
            f"{gate}.bind: entropy=None, but its threshold is a quantile; give the student's "
            "entropies (sd.token_stats without grad, or those of rollout time), or a fixed tau"
        )
    _same_shape("entropy", entropy, mask)
    mask = mask.bool()
    return torch.where(mask, _at_least_float32(entropy), 0.0), mask


def _at_least_float32(tensor: Tensor) -> Tensor:
    # Not narrower than the entropies: tau is one of them and is compared with them.
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _same_shape(name: str, tensor: Tensor, mask: Tensor) -> None:
    if tensor.shape != mask.shape or mask.dim() == 0:
        raise ValueError(
            f"{name}: expected the shape of the mask, [sequences, tokens], "
            f"got {list(tensor.shape)} with a mask of {list(mask.shape)}"
        )


def _expand(per_row: Tensor, mask: Tensor) -> Tensor:
    return per_row.unsqueeze(-1).expand(mask.shape).contiguous()


def _full(mask: Tensor, value: float) -> Tensor:
    return torch.full(mask.shape, value, dtype=torch.float32, device=mask.device)


def _scope(scope: str | None, *, fixed: bool) -> str:
    if scope is None:
        return "fixed" if fixed else "sequence"
    _word("scope", scope, SCOPES)
    if (scope == "fixed") != fixed:
        have = "a tau" if fixed else "no tau"
        raise ValueError(
            f"scope={scope!r} with {have} is not accepted; scope 'fixed' goes with tau=, "
            "'sequence' and 'batch' with a quantile"
        )
    return scope


def _word(name: str, value: str, known: tuple[str, ...], other: str = "") -> str:
    if value not in known:
        words = ", ".join(repr(word) for word in known)
        raise ValueError(f"{name}={value!r} is not accepted; give {words} {other}".rstrip())
    return value


def _nats(name: str, value: float) -> float:
    if isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}={value} is not accepted; give a finite number of nats >= 0")
    return float(value)


def _share(name: str, value: float) -> float:
    if isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{name}={value} is not accepted; give a number in [0, 1]")
    return float(value)
