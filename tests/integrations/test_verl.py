"""verl: recipes in its registries, the engine behind its fused kernels.

Each test runs against a stub of verl's interface, and against verl itself where it is installed
(`make test-verl`).
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import verl_stub
from torch import Tensor

import sdkernels as sd
from sdkernels.integrations import verl as ours
from sdkernels.testing import assert_close_to_reference, assert_exact

HAS_VERL = importlib.util.find_spec("verl") is not None
NEEDS_VERL = pytest.mark.skipif(not HAS_VERL, reason="verl is not installed: make test-verl")


@pytest.fixture(params=["stub", pytest.param("verl", marks=NEEDS_VERL)])
def verl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules of verl that we touch; registries are emptied of our names afterwards."""
    if request.param == "stub":
        verl_stub.install(monkeypatch)
    load = importlib.import_module
    losses = load("verl.trainer.distillation.losses")
    algorithms = load("verl.trainer.ppo.core_algos")
    for registry in (losses.DISTILLATION_LOSS_REGISTRY, algorithms.POLICY_LOSS_REGISTRY):
        for name in [name for name in registry if "sdkernels" in name]:
            monkeypatch.delitem(registry, name)
    return SimpleNamespace(
        distillation=losses.DISTILLATION_LOSS_REGISTRY,
        policy=algorithms.POLICY_LOSS_REGISTRY,
        functional=load("verl.utils.experimental.torch_functional"),
        triton=load("verl.utils.kernel.linear_cross_entropy"),
        real=request.param == "verl",
    )


PROMPTS, RESPONSES = (3, 2), (4, 6)  # tokens of two sequences


class Batch:
    """Two sequences, packed as verl's engine returns them and padded as its data has them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        total = sum(PROMPTS) + sum(RESPONSES)
        self.logp = torch.randn(total).mul(0.5).sub(1).requires_grad_()
        self.entropy = torch.rand(total) * 3
        self.teacher_logp = torch.randn(total, 1) - 1
        self.mask_BL = torch.arange(6) < torch.tensor(RESPONSES)[:, None]
        self.adv_BL = torch.tensor([[1.0], [-0.7]]).expand(2, 6)
        self.old_logp_BL = self.response(self.logp.detach()) + 0.3 * torch.randn(2, 6)
        attention = [
            [0] * (3 - p) + [1] * (p + r) + [0] * (6 - r)
            for p, r in zip(PROMPTS, RESPONSES, strict=True)
        ]
        self.data: Any = {
            "prompts": torch.ones(2, 3, dtype=torch.long),
            "responses": torch.ones(2, 6, dtype=torch.long),
            "attention_mask": torch.tensor(attention),
            "response_mask": self.mask_BL,
            "teacher_logprobs": self.teacher_logp,
            "old_log_probs": self.old_logp_BL,
            "advantages": self.adv_BL,
        }
        self.model_output: Any = {"log_probs": self.logp, "entropy": self.entropy}

    def response(self, packed: Tensor) -> Tensor:
        """By slices written down by hand: the value at a position predicts the next token."""
        out = torch.zeros(2, 6)
        out[0, :4] = packed[2:6]  # prompt 0..2, response 3..6
        out[1, :6] = packed[8:14]  # prompt 7..8, response 9..14
        return out


def settings(**changes: Any) -> SimpleNamespace:
    loss = {"use_policy_gradient": False, "use_task_rewards": False} | changes
    return SimpleNamespace(distillation_loss=SimpleNamespace(**loss))


def test_a_distillation_loss_is_the_recipe_on_the_response_tokens(verl: SimpleNamespace) -> None:
    gate = sd.gates.EntropySign(quantile=0.5)
    name = ours.register("dasd", gate=gate)
    assert name == "sdkernels_dasd"
    batch = Batch()
    losses_BL, metrics = verl.distillation[name](
        config=None,
        distillation_config=settings(),
        model_output=batch.model_output,
        data=batch.data,
    )
    (found,) = torch.autograd.grad((losses_BL * batch.mask_BL).sum(), batch.logp)

    logp_BL = batch.response(batch.logp)
    teacher_BL = batch.response(batch.teacher_logp[:, 0])
    entropy_BL = batch.response(batch.entropy)
    bound = gate.bind(entropy_BL, batch.mask_BL)
    recipe = sd.recipes.get("dasd")
    stats = SimpleNamespace(
        logp=logp_BL,
        teacher_logp=teacher_BL,
        entropy=entropy_BL,
        direction=bound.direction(entropy_BL, bound.tau, bound.sigma),
    )
    tokens = SimpleNamespace(
        weight=batch.mask_BL.float(),
        adv=batch.adv_BL,
        old_logp=batch.old_logp_BL,
        gap_scale=sd.recipes.gap_scale((teacher_BL - logp_BL).detach(), batch.mask_BL),
    )
    wanted_BL = recipe.loss_fn(stats, tokens)
    (wanted,) = torch.autograd.grad(wanted_BL.sum(), batch.logp)
    assert losses_BL.shape == (2, 6)
    torch.testing.assert_close(losses_BL, wanted_BL, rtol=1e-6, atol=0)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    outside = torch.ones(15, dtype=torch.bool)
    outside[2:6] = outside[8:14] = False
    assert found[outside].eq(0).all()
    gap = (teacher_BL - logp_BL).detach()[batch.mask_BL].mean()
    assert metrics == {"distillation/gap": pytest.approx(gap.item(), rel=1e-6)}


def test_a_policy_loss_is_the_recipe_aggregated_by_verl(verl: SimpleNamespace) -> None:
    name = ours.register("grpo", name="sdkernels_grpo_wide", clip_high=0.5)
    torch.manual_seed(1)
    logp = torch.randn(2, 6).requires_grad_()
    old, adv = logp.detach() + 0.4 * torch.randn(2, 6), torch.randn(2, 6)
    mask, weights = torch.rand(2, 6) < 0.7, torch.rand(2, 6)
    config = SimpleNamespace(global_batch_info={"dp_size": 2, "batch_num_tokens": 40})
    loss, metrics = verl.policy[name](
        old_log_prob=old,
        log_prob=logp,
        advantages=adv,
        response_mask=mask,
        loss_agg_mode="token-mean",
        config=config,
        rollout_is_weights=weights,
    )
    ratio = (logp - old).exp()
    clipped = -torch.minimum(ratio * adv, ratio.clamp(0.8, 1.5) * adv)
    bounded = torch.where(adv < 0, torch.minimum(clipped, -3.0 * adv), clipped)
    wanted = (bounded * weights)[mask].sum() / 40 * 2
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    assert metrics["actor/ppo_kl"] == pytest.approx((old - logp)[mask].mean().item(), rel=1e-5)


@pytest.mark.parametrize("shape", [(11,), (2, 5)])
def test_the_fused_kernels_become_the_engine(verl: SimpleNamespace, shape: tuple[int, ...]) -> None:
    torch.manual_seed(2)
    hidden, weight = (
        torch.randn(*shape, 8, dtype=torch.float64),
        torch.randn(50, 8, dtype=torch.float64),
    )
    hidden.requires_grad_(), weight.requires_grad_()
    ids = torch.randint(50, shape)
    before = verl.functional.FusedLinearForPPO.forward, verl.triton.linear_cross_entropy
    upstream = torch.randn(2, *shape, dtype=torch.float64)

    logits = hidden @ weight.T / 0.7
    logp = logits.log_softmax(-1)
    values = logp.gather(-1, ids[..., None])[..., 0], -(logp.exp() * logp).sum(-1)
    total = (values[0] * upstream[0] + values[1] * upstream[1]).sum()
    wanted = torch.autograd.grad(total, (hidden, weight))
    with ours.use_engine():
        fused = verl.functional.FusedLinearForPPO(impl_backend="torch")
        modular = fused(hidden, weight, ids, temperature=0.7)
        function = verl.triton.linear_cross_entropy(hidden, weight, ids, 0.7, "none")
        for result in (modular, function):
            result = [part.view(shape) for part in result]
            total = (result[0] * upstream[0] + result[1] * upstream[1]).sum()
            found = torch.autograd.grad(total, (hidden, weight))
            for mine, reference in zip((*result, *found), (*values, *wanted), strict=True):
                assert_exact(mine, reference)
    assert (verl.functional.FusedLinearForPPO.forward, verl.triton.linear_cross_entropy) == before


@NEEDS_VERL
def test_the_engine_agrees_with_verls_own_chunked_function() -> None:
    """In float32, on verl's CPU path."""
    from verl.utils.experimental.torch_functional import FusedLinearForPPO

    torch.manual_seed(3)
    hidden, weight = torch.randn(2, 9, 16), torch.randn(200, 16)
    ids, upstream = torch.randint(200, (2, 9)), torch.randn(2, 2, 9)

    def run(dtype: torch.dtype) -> list[Tensor]:
        leaves = [hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()]
        logp, entropy = FusedLinearForPPO()(*leaves, ids, temperature=1.3)
        total = (logp * upstream[0] + entropy * upstream[1]).sum()
        return [logp, entropy, *torch.autograd.grad(total, leaves)]

    theirs = run(torch.float32)
    with ours.use_engine():
        mine, exact = run(torch.float32), run(torch.float64)
    kinds = ("value", "value", "gradient", "gradient")
    for found, truth, reference, kind in zip(mine, exact, theirs, kinds, strict=True):
        assert_close_to_reference(found, truth, reference, kind=kind)


@NEEDS_VERL
def test_verl_dispatches_to_the_recipe_and_aggregates() -> None:
    from verl.trainer.distillation.losses import DISTILLATION_LOSS_REGISTRY, distillation_loss

    name = ours.register("distill_sampled", name="sdkernels_dispatched")
    batch = Batch()
    batch.data |= {"dp_size": 1, "batch_num_tokens": 10, "global_batch_size": 2}
    config = SimpleNamespace(
        loss_agg_mode="token-mean", loss_scale_factor=None, global_batch_info={}
    )
    distillation = settings(loss_mode=name, loss_max_clamp=None)
    loss, metrics = distillation_loss(config, distillation, batch.model_output, batch.data)
    losses_BL, _ = DISTILLATION_LOSS_REGISTRY[name](
        config, distillation, batch.model_output, batch.data
    )
    torch.testing.assert_close(loss, losses_BL.sum() / 10)
    assert loss.requires_grad
    assert "distillation/gap" in metrics


@NEEDS_VERL
def test_the_stub_has_the_interface_of_verl(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "verl.trainer.ppo.core_algos": ["agg_loss"],
        "verl.workers.utils.padding": ["no_padding_2_padding"],
    }
    real = {name: importlib.import_module(name) for name in names}
    with monkeypatch.context() as patched:
        verl_stub.install(patched)
        for name, functions in names.items():
            for function in functions:
                stub = getattr(importlib.import_module(name), function)
                assert list(inspect.signature(stub).parameters) == list(
                    inspect.signature(getattr(real[name], function)).parameters
                )
    from verl.trainer.ppo.core_algos import get_policy_loss_fn

    own = inspect.signature(get_policy_loss_fn("vanilla")).parameters
    name = ours.register("grpo", name="sdkernels_signature")
    assert list(inspect.signature(get_policy_loss_fn(name)).parameters) == list(own)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": "opsd"}, "clipped_kl_teacher_student"),
        ({"recipe": "gkd"}, "jsd"),
        ({"recipe": "dasd"}, "needs a gate"),
        ({"recipe": "grpo", "gate": sd.gates.EntropySign(tau=1.0)}, "no use for gate"),
        ({"recipe": "rlsd"}, "schedule over steps"),
        ({"recipe": "gppo"}, "grpo"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_verl_cannot_feed_is_refused(
    verl: SimpleNamespace, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ours.register(**arguments)


def test_a_name_is_given_once(verl: SimpleNamespace) -> None:
    ours.register("grpo")
    with pytest.raises(ValueError, match="taken"):
        ours.register("grpo", clip_high=0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_policy_gradient": True}, "use_policy_gradient=false"),
        ({"use_task_rewards": True}, "use_task_rewards=false"),
    ],
)
def test_settings_of_verl_that_would_break_the_recipe(
    verl: SimpleNamespace, changes: dict[str, Any], message: str
) -> None:
    name = ours.register("dasd", gate=sd.gates.EntropySign(tau=1.0))
    batch = Batch()
    with pytest.raises(ValueError, match=message):
        verl.distillation[name](None, settings(**changes), batch.model_output, batch.data)


def test_a_gate_without_entropies_names_the_setting(verl: SimpleNamespace) -> None:
    name = ours.register("dasd", gate=sd.gates.EntropySign(tau=1.0))
    batch = Batch()
    with pytest.raises(ValueError, match="calculate_entropy=true"):
        verl.distillation[name](None, settings(), {"log_probs": batch.logp}, batch.data)


def test_a_teachers_list_is_refused(verl: SimpleNamespace) -> None:
    name = ours.register("distill_sampled")
    batch = Batch()
    batch.data["teacher_logprobs"] = torch.randn(15, 3)
    with pytest.raises(ValueError, match="got 3 per token"):
        verl.distillation[name](None, settings(), batch.model_output, batch.data)


def test_unsupported_arguments_of_the_fused_function() -> None:
    hidden, weight, ids = torch.randn(3, 4), torch.randn(9, 4), torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match="reduction='mean'"):
        ours.linear_cross_entropy(hidden, weight, ids, 1.0, "mean")
    with pytest.raises(ValueError, match="vocab_offset"):
        ours.linear_cross_entropy(hidden, weight, ids, 1.0, "none", object())
