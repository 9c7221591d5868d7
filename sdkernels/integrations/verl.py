"""The engine and the recipes inside verl (0.9): two independent one-liners.

`use_engine()` replaces the function behind verl's fused kernels (log-prob and entropy from hidden
states and the head's weight, for `use_fused_kernels: true`) by the engine. `register(...)` enters
a recipe into verl's registry of policy losses, or of distillation losses where it has a teacher.

What verl hands to a registered loss are padded `[B, L]` tensors (B sequences, L response tokens):
log-probs of the sampled tokens, entropies, the teacher's log-probs, advantages. A recipe that
reads anything else is refused by name when it is registered.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdkernels import recipes
from sdkernels.engine.stats import MissingFieldError, Tokens, TokenStats
from sdkernels.gates import Gate
from sdkernels.integrations.undo import Undo
from sdkernels.ops import linear_logprob
from sdkernels.recipes import Recipe

FROM_VERL = ("logp", "entropy", "teacher_logp", "direction")


def use_engine() -> Undo:
    """Let verl's fused kernels call the engine, whichever backend its configuration names.

    Takes effect in the process that calls it: call it where a worker starts, for example from the
    module named by `actor_rollout_ref.model.external_lib`. Needs `use_fused_kernels: true`.

    Returns:
        An `Undo`: call it, or leave its `with` block, to restore verl's own functions.
    """
    from verl.utils.experimental import torch_functional
    from verl.utils.kernel import linear_cross_entropy as triton_module

    fused = torch_functional.FusedLinearForPPO
    before = (fused.forward, triton_module.linear_cross_entropy)

    def restore() -> None:
        fused.forward, triton_module.linear_cross_entropy = before

    fused.forward = _fused_linear_for_ppo
    triton_module.linear_cross_entropy = linear_cross_entropy
    return Undo("verl's fused kernels", restore)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    reduction: str = "none",
    dist_process_group: Any = None,
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy with verl's signature (verl/utils/kernel/linear_cross_entropy.py).

    Args:
        hidden: `[..., D]`.
        weight: `[V, D]`.
        labels: `[...]` token ids.
        temperature: divides the logits.
        reduction: "none"; verl's models pass nothing else.
        dist_process_group: None. For a head split over ranks use `LMHead(group=...)` directly.

    Returns:
        `[tokens]` log-probs and `[tokens]` entropies, in nats, flattened as verl's are.

    Raises:
        ValueError: another reduction, or a process group.
    """
    if reduction.lower() != "none":
        raise ValueError(f"reduction={reduction!r}: only 'none' is supported; reduce outside")
    if dist_process_group is not None:
        raise ValueError(
            "dist_process_group: a head split over ranks is not supported through verl's "
            "signature, which does not say which rows of the vocabulary a rank holds; use "
            "sd.LMHead(weight, group=..., vocab_offset=...) with sd.linear_logprob"
        )
    found = linear_logprob(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        labels.reshape(-1).long(),
        with_entropy=True,
        temperature=temperature,
    )
    assert isinstance(found, tuple)
    return found


def _fused_linear_for_ppo(
    self: Any,
    hidden_states: Tensor,
    vocab_weights: Tensor,
    input_ids: Tensor,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """`FusedLinearForPPO.forward`: the shape of `input_ids` comes back."""
    logp, entropy = linear_cross_entropy(hidden_states, vocab_weights, input_ids, temperature)
    return logp.view(input_ids.shape), entropy.view(input_ids.shape)


def register(
    recipe: str, *, name: str | None = None, gate: Gate | None = None, **settings: Any
) -> str:
    """Enter a recipe into verl's registry.

    A recipe without a teacher becomes a policy loss: set `actor.policy_loss.loss_mode`. One with a
    teacher becomes a distillation loss of the kind that uses the sampled token: set
    `distillation.distillation_loss.loss_mode`, `use_policy_gradient: false`, and
    `use_task_rewards: false` where the recipe has the verifier's advantage in it. verl aggregates
    (`loss_agg_mode`) and clamps (`loss_max_clamp`) as for its own losses.

    Args:
        recipe: a name of `sd.recipes.names()`.
        name: what verl shall call it; default `sdkernels_<recipe>`.
        gate: for a recipe that needs one, e.g. `sd.gates.DirectionAdaptive()`. It is bound to the
            entropies of each micro-batch, so use a gate with `scope="sequence"`.
        settings: settings of the recipe.

    Returns:
        The name to put into verl's configuration.

    Raises:
        ValueError: the recipe reads a statistic or an input that verl does not hand to a
            registered loss, or needs a gate and none came, or `name` is taken.
    """
    made = recipes.get(recipe, **settings)
    name = name or f"sdkernels_{recipe}"
    if ("gate" in made.needs) != (gate is not None):
        wanted = "needs a gate: pass gate=" if gate is None else "has no use for gate="
        raise ValueError(f"recipe {recipe!r} {wanted}sd.gates.DirectionAdaptive() or another one")
    _check_readable(made)
    if "teacher" in made.needs:
        _register_distillation(name, made, gate)
    else:
        _register_policy(name, made)
    return name


def per_token(
    recipe: Recipe,
    gate: Gate | None,
    mask_BL: Tensor,
    *,
    logp_BL: Tensor,
    entropy_BL: Tensor | None = None,
    teacher_logp_BL: Tensor | None = None,
    old_logp_BL: Tensor | None = None,
    adv_BL: Tensor | None = None,
) -> Tensor:
    """`[B, L]` losses of a recipe from padded tensors; 0 where the mask is. Not aggregated."""
    stats = {"logp": logp_BL, "entropy": entropy_BL, "teacher_logp": teacher_logp_BL}
    if gate is not None:
        assert entropy_BL is not None
        bound = gate.bind(entropy_BL.detach(), mask_BL)
        stats["direction"] = bound.direction(entropy_BL.detach(), bound.tau, bound.sigma)
    tokens = {"weight": mask_BL.to(logp_BL.dtype), "old_logp": old_logp_BL, "adv": adv_BL}
    if "gap_scale" in recipe.inputs:
        assert teacher_logp_BL is not None
        tokens["gap_scale"] = recipes.gap_scale((teacher_logp_BL - logp_BL).detach(), mask_BL)
    return recipe.loss_fn(TokenStats(_given(stats)), Tokens(_given(tokens)))


def _given(fields: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in fields.items() if tensor is not None}


def _check_readable(recipe: Recipe) -> None:
    """Try the recipe on a token that has what verl gives."""
    for field, what in (
        ("schedule", "a schedule over steps"),
        ("batch_quantity", "a mean over the batch"),
    ):
        if getattr(recipe, field) is not None:
            raise ValueError(
                f"recipe {recipe.name!r} with {recipe.config} needs {what}, which a loss of verl's "
                "registry does not see; switch it off by its settings (`sdkernels recipes --show "
                f"{recipe.name}`)"
            )
    one = torch.full((1, 1), -1.0)
    readable = dict.fromkeys(FROM_VERL, one) | {"entropy": -one}
    tokens = dict.fromkeys(("weight", "adv", "old_logp", "gap_scale"), one)
    try:
        recipe.loss_fn(TokenStats(readable), Tokens(tokens))
    except MissingFieldError as error:
        raise ValueError(
            f"recipe {recipe.name!r} with {recipe.config} can't be a loss of verl's registry, "
            f"which has {', '.join(FROM_VERL[:-1])} of the sampled token, advantages and old "
            f"log-probs: {error}"
        ) from error


def _register_policy(name: str, recipe: Recipe) -> None:
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, agg_loss, register_policy_loss

    if name in POLICY_LOSS_REGISTRY:
        raise ValueError(f"name={name!r} is taken in verl's registry of policy losses")

    def policy_loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        losses_BL = per_token(
            recipe,
            None,
            response_mask.bool(),
            logp_BL=log_prob,
            old_logp_BL=old_log_prob,
            adv_BL=advantages,
        )
        if rollout_is_weights is not None:
            losses_BL = losses_BL * rollout_is_weights
        info = {} if config is None else config.global_batch_info
        loss = agg_loss(
            loss_mat=losses_BL, loss_mask=response_mask, loss_agg_mode=loss_agg_mode, **info
        )
        kl = ((old_log_prob - log_prob) * response_mask).sum() / response_mask.sum().clamp(min=1)
        return loss, {"actor/ppo_kl": kl.item()}

    register_policy_loss(name)(policy_loss)


def _register_distillation(name: str, recipe: Recipe, gate: Gate | None) -> None:
    from verl.trainer.distillation.losses import (
        DISTILLATION_LOSS_REGISTRY,
        DistillationLossSettings,
        register_distillation_loss,
    )

    if name in DISTILLATION_LOSS_REGISTRY:
        raise ValueError(f"name={name!r} is taken in verl's registry of distillation losses")

    def distillation_loss(
        config: Any, distillation_config: Any, model_output: Any, data: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        _check_settings(recipe, distillation_config.distillation_loss)
        mask_BL = _padded(data["response_mask"]).bool()
        batch = _batch(recipe, gate, model_output, data)
        losses_BL = per_token(recipe, gate, mask_BL, **batch)
        gap = (batch["teacher_logp_BL"] - batch["logp_BL"]).detach()[mask_BL]
        return losses_BL, {"distillation/gap": gap.mean().item() if gap.numel() else 0.0}

    settings = DistillationLossSettings(names=[name], use_estimator=True)
    register_distillation_loss(settings)(distillation_loss)


def _check_settings(recipe: Recipe, loss: Any) -> None:
    if loss.use_policy_gradient:
        raise ValueError(
            "use_policy_gradient=True would detach the loss and use it as a reward; set "
            f"distillation_loss.use_policy_gradient=false for recipe {recipe.name!r}"
        )
    if loss.use_task_rewards and "rewards" in recipe.needs:
        raise ValueError(
            f"use_task_rewards=True would add the policy loss to recipe {recipe.name!r}, which has "
            "the verifier's advantage in it already; set distillation_loss.use_task_rewards=false"
        )


def _batch(recipe: Recipe, gate: Gate | None, model_output: Any, data: Any) -> dict[str, Tensor]:
    """What the recipe reads, as padded response tensors."""
    from verl.workers.utils.padding import no_padding_2_padding

    teacher_BLK = no_padding_2_padding(data["teacher_logprobs"], data)
    if teacher_BLK.shape[-1] != 1:
        raise ValueError(
            f"teacher_logprobs: expected the sampled token's log-prob, got {teacher_BLK.shape[-1]} "
            "per token"
        )
    batch = {
        "logp_BL": no_padding_2_padding(model_output["log_probs"], data),
        "teacher_logp_BL": teacher_BLK[..., 0],
    }
    if gate is not None:
        if model_output.get("entropy") is None:
            raise ValueError(
                f"recipe {recipe.name!r} with a gate needs entropies; set "
                "actor_rollout_ref.actor.calculate_entropy=true"
            )
        batch["entropy_BL"] = no_padding_2_padding(model_output["entropy"], data)
    if "old_logp" in recipe.needs:
        batch["old_logp_BL"] = _padded(data["old_log_probs"])
    if "adv" in recipe.inputs:
        batch["adv_BL"] = _padded(data["advantages"])
    return batch


def _padded(tensor: Tensor) -> Tensor:
    return tensor.to_padded_tensor(0) if tensor.is_nested else tensor
