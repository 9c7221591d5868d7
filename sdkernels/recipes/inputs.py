"""Per-token inputs that need a whole batch: aggregation weights and group advantages.

Loss functions see one chunk of tokens at a time, so whatever spans a sequence, a group or a batch
is computed here, before the loss, and handed over in `tokens=`. What depends on entropies or gaps
is in `sdkernels.gates`.

The standard names in `tokens=`, all `[.., L]`:

    weight               share of the token in the mean (`aggregate`); 0 leaves it out
    adv                  verifier's advantage of its sequence (`group_advantages`)
    success              1 where its sequence was verified correct
    old_logp             log-prob under the policy that sampled, nats
    tau, sigma           threshold and scale of an entropy gate, nats
    gap_scale            typical size of its sequence's gap, nats (`gap_scale`)
    second_teacher_logp  log-prob under the contrasting teacher, nats; the mean of K contexts is
                         logsumexp_k - log K; NaN in sequences that have none
    signal               1 where the teacher saw a context, 0 where it did not
    strength             factor of the distillation in this step: `recipe.schedule(step)`, a gate
    suffix               0 before the first error of a wrong response
    batch_mean           mean of `recipe.batch_quantity(stats, tokens)`, by `weight`, over what
                         it counts in the whole batch; SRPO's entropy weights and RLCSD's two means
                         need it

What a recipe cannot do without is in `recipe.inputs`, what it reads if it is there in
`recipe.optional`; what absence means stands in `registry.OPTIONAL`.

Shape letters: B sequences, L tokens, G rollouts a group, N rollouts, M
groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdkernels.recipes.settings import unknown

MODES = ("token_mean", "sequence_mean")
SCALES = ("std", "none")


def aggregate(
    mask_BL: Tensor,
    mode: str = "token_mean",
    num_items: int | float | Tensor | None = None,
    *,
    count_empty: bool = False,
) -> Tensor:
    """Weights whose dot product with per-token losses is the mean that `mode` names.

    Args:
        mask_BL: bool, or 0 / 1; 1 where the token counts.
        mode: "token_mean": every token weighs 1 / (number of tokens). "sequence_mean": the mean
            over a sequence's tokens, then the mean over sequences.
        num_items: the global denominator where a batch is split over accumulation steps or ranks,
            in tokens for "token_mean" and in sequences for "sequence_mean". The parts' losses then
            add up to what one big batch gives. None: what this mask holds.
        count_empty: "sequence_mean" without `num_items` only: sequences without a token count as a
            0 (TRL's rule). By default they are left out (verl's rule).

    Returns:
        float32, shape of the mask, 0 outside it. An empty mask, or `num_items=0`, gives weights of
        0, so that the loss is 0 and not NaN.

    Raises:
        ValueError: an unknown mode, a mask with other values, or settings that don't go together.

    Example:
        >>> import sdkernels as sd
        >>> sd.recipes.aggregate(torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]), "token_mean")[0]
        tensor([0.2500, 0.2500, 0.2500, 0.0000])
        >>> sd.recipes.aggregate(torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]), "sequence_mean")
        tensor([[0.2500, 0.2500, 0.0000, 0.0000],
                [0.5000, 0.0000, 0.0000, 0.0000]])
    """
    mask = _as_bool(mask_BL, "mask_BL")
    if mode not in MODES:
        raise ValueError(unknown("mode", mode, MODES))
    if mode == "sequence_mean" and mask.dim() != 2:
        raise ValueError(
            f"mask_BL: mode='sequence_mean' needs [sequences, tokens], got {list(mask.shape)}; "
            "make the weights before packing sequences into one row"
        )
    if count_empty and (mode != "sequence_mean" or num_items is not None):
        raise ValueError(
            "count_empty=True has an effect with mode='sequence_mean' and num_items=None only, "
            f"got mode={mode!r} and num_items={num_items}"
        )
    if mode == "token_mean":
        weight, items = mask.double(), mask.sum()
    else:
        length_B = mask.sum(dim=1)
        weight = mask / length_B.clamp(min=1).double().unsqueeze(1)
        items = torch.ones_like(length_B).sum() if count_empty else (length_B > 0).sum()
    if num_items is not None:
        items = _denominator(num_items, mask.device)
    return torch.where(items > 0, weight / items, 0.0).float()


def skip_first_tokens(mask_BL: Tensor, num_tokens: int) -> Tensor:
    """The mask without the first `num_tokens` counted tokens of each row, bool.

    SDFT's code (2601.19897) leaves out about 3.
    """
    mask = _as_bool(mask_BL, "mask_BL")
    if num_tokens < 0:
        raise ValueError(f"num_tokens={num_tokens} is not accepted; give a whole number >= 0")
    return mask & (mask.cumsum(dim=-1) > num_tokens)


def group_advantages(
    rewards: Tensor,
    groups: Tensor | Sequence[int] | None = None,
    *,
    scale: str = "std",
    eps: float = 1e-6,
) -> Tensor:
    """Reward minus the mean of its group, over the group's standard deviation (GRPO, 2402.03300).

    Args:
        rewards: `[B, G]`, one row a group, or flat `[N]` with `groups`.
        groups: `[N]` integers, equal for rollouts of one group, in any order.
        scale: "std" divides by the standard deviation (n - 1) plus `eps`; "none" only centres, as
            Dr. GRPO and the baseline of SDPO do.
        eps: 1e-6 in verl, 1e-4 in TRL.

    Returns:
        shape of `rewards`, in their dtype (float32 for integers). Exactly 0 for a group whose
        rewards are all equal, and for a group of one, where verl gives the raw reward: a reward
        without another to compare it with says nothing about the policy.

    Raises:
        ValueError: shapes that don't go together, an unknown scale, or a reward that is not finite.
    """
    if scale not in SCALES:
        raise ValueError(unknown("scale", scale, SCALES))
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps={eps} is not accepted; give a finite number >= 0")
    reward_N = rewards.reshape(-1).double()
    finite_N = torch.isfinite(reward_N)
    if not bool(finite_N.all()):
        where = int((~finite_N).nonzero()[0])
        raise ValueError(
            f"rewards: entry {where} (of {len(reward_N)}, flattened) is {reward_N[where].item()}; "
            "every rollout needs a finite reward, so leave unverified rollouts out"
        )
    groups_M, index_N = torch.unique(_group_ids(rewards, groups), return_inverse=True)
    dtype = rewards.dtype if rewards.dtype.is_floating_point else torch.float32
    if len(reward_N) == 0:
        return torch.zeros_like(rewards, dtype=dtype)
    # A member matrix and not index_add: sums in a fixed order on any device.
    member_MN = torch.arange(len(groups_M), device=index_N.device).unsqueeze(1) == index_N
    count_M = member_MN.sum(dim=1)
    mean_M = torch.where(member_MN, reward_N, 0.0).sum(dim=1) / count_M
    low_M = torch.where(member_MN, reward_N, math.inf).amin(dim=1)
    high_M = torch.where(member_MN, reward_N, -math.inf).amax(dim=1)
    # A group of equal rewards is 0 by decree: the rounding of its mean would be blown up by 1 /
    # eps.
    adv_N = torch.where((low_M == high_M)[index_N], 0.0, reward_N - mean_M[index_N])
    if scale == "std":
        square_M = torch.where(member_MN, adv_N.square(), 0.0).sum(dim=1)
        std_M = (square_M / (count_M - 1).clamp(min=1)).sqrt()
        adv_N = adv_N / torch.where(std_M > 0, std_M + eps, 1.0)[index_N]
    return adv_N.to(dtype).reshape(rewards.shape)


def _group_ids(rewards: Tensor, groups: Tensor | Sequence[int] | None) -> Tensor:
    if groups is None:
        if rewards.dim() != 2:
            raise ValueError(
                f"rewards: expected [groups, rollouts per group], got {list(rewards.shape)}; "
                "flat rewards need groups=, one id an entry"
            )
        ids = torch.arange(rewards.shape[0], device=rewards.device)
        return ids.repeat_interleave(rewards.shape[1])
    given = torch.as_tensor(groups, device=rewards.device)
    if given.shape != rewards.shape or rewards.dim() != 1:
        raise ValueError(
            f"groups: expected the shape of rewards, [N], got {list(given.shape)} with rewards of "
            f"{list(rewards.shape)}"
        )
    return given


def _as_bool(mask: Tensor, name: str) -> Tensor:
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"{name}: expected a bool mask or 0 / 1, got other values ({mask.dtype})")
    return mask.bool()


def _denominator(num_items: int | float | Tensor, device: torch.device) -> Tensor:
    total = torch.as_tensor(num_items, device=device).double()
    if total.dim() != 0:
        raise ValueError(f"num_items: expected one number, got a tensor of {list(total.shape)}")
    if not isinstance(num_items, Tensor) and not 0 <= num_items < math.inf:
        raise ValueError(f"num_items={num_items} is not accepted; give a finite number >= 0")
    return total
