"""`LigerFusedLinearGRPOLoss` against Liger's, losses, metrics and gradients, uncompiled on CPU."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss as Theirs

from sdkernels.integrations.liger import LigerFusedLinearGRPOLoss as Ours
from sdkernels.integrations.liger import policy
from sdkernels.integrations.liger.policy import CLIPPED, LOSS_TYPES

B, L, D, V = 3, 7, 12, 31
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def problem(*, old: bool, bias: bool = False) -> dict[str, Any]:
    gen = torch.Generator().manual_seed(4)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return scale * torch.randn(shape, generator=gen)

    hidden, weight = normal(B, L, D), normal(V, D, scale=0.5)
    ids = torch.randint(V, (B, L), generator=gen)
    mask = torch.arange(L) < torch.tensor([[7], [4], [1]])
    logp = (hidden @ weight.T).log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
    inputs: dict[str, Any] = {
        "_input": hidden,
        "lin_weight": weight,
        "selected_token_ids": ids,
        "attention_mask": mask.long(),
        "advantages": torch.tensor([1.0, -0.7, 0.4]),
        "ref_per_token_logps": logp + normal(B, L, scale=0.3),
    }
    if old:
        inputs["old_per_token_logps"] = logp + normal(B, L, scale=0.3)
    if bias:
        inputs["bias"] = normal(V, scale=0.2)
    return inputs


def run(cls: Any, settings: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    inputs = dict(inputs)
    trained = [name for name in ("_input", "lin_weight", "bias") if name in inputs]
    for name in trained:
        inputs[name] = inputs[name].clone().requires_grad_()
    loss, metrics = cls(compiled=False, **settings)(**inputs)
    (3 * loss).backward()
    return {
        "loss": loss.detach(),
        "metrics": list(metrics),
        "grads": [inputs[name].grad for name in trained],
    }


def agree(settings: dict[str, Any], inputs: dict[str, Any]) -> None:
    ours, theirs = run(Ours, settings, inputs), run(Theirs, settings, inputs)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert theirs["grads"][0].abs().max() > 1e-3


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("old", [True, False], ids=["off-policy", "on-policy"])
def test_loss_types(loss_type: str, old: bool) -> None:
    agree({"loss_type": loss_type, "max_completion_length": 9}, problem(old=old, bias=True))


@pytest.mark.parametrize("loss_type", CLIPPED)
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_ratio_per_sequence(loss_type: str, beta: float) -> None:
    settings = {
        "loss_type": loss_type,
        "beta": beta,
        "importance_sampling_level": "sequence",
        "max_completion_length": 9,
        "epsilon_low": 0.2,
        "epsilon_high": 0.15,
    }
    agree(settings, problem(old=True))


@pytest.mark.parametrize("loss_type", CLIPPED)
@pytest.mark.parametrize("correct", [False, True])
def test_a_ratio_per_sequence_on_policy(loss_type: str, correct: bool) -> None:
    """The ratio is 1, but its gradient is a mean over the sequence: where tokens weigh
    differently that is not the ratio of each token.
    """
    settings = {
        "loss_type": loss_type,
        "importance_sampling_level": "sequence",
        "max_completion_length": 9,
        "use_bias_correction_kl": correct,
    }
    ratio = torch.linspace(0.5, 1.5, B * L).reshape(B, L)
    agree(settings, problem(old=False) | {"vllm_is_ratio": ratio})


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"delta": 1.1, "epsilon_high": 0.5, "loss_type": "grpo"},
        {"use_bias_correction_kl": True},
        {"use_bias_correction_kl": True, "importance_sampling_level": "sequence"},
        {"use_ref_model": False},
        {"loss_type": "sapo", "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 0.5},
        {"loss_type": "vespo", "vespo_k_pos": 1.0, "vespo_lambda_neg": 1.0, "beta": 0.0},
        {"loss_type": "cispo", "epsilon_high": 1.05, "chunk_size": 2},
    ],
    ids=lambda settings: " ".join(f"{k}={v}" for k, v in settings.items()),
)
def test_settings(settings: dict[str, Any]) -> None:
    agree(settings, problem(old=True))


@pytest.mark.parametrize("shape", [(B,), (B, 1), (B, L)], ids=str)
@pytest.mark.parametrize("loss_type", ["dapo", "vespo", "luspo"])
def test_correction_of_the_sampler(shape: tuple[int, ...], loss_type: str) -> None:
    ratio = 0.5 + torch.rand(shape, generator=torch.Generator().manual_seed(1))
    agree({"loss_type": loss_type}, problem(old=True) | {"vllm_is_ratio": ratio})
    agree({"loss_type": loss_type}, problem(old=False) | {"vllm_is_ratio": ratio})


@pytest.mark.parametrize("items", [40, torch.tensor(25.0)], ids=str)
def test_tokens_of_the_step(items: Any) -> None:
    agree({"loss_type": "cispo"}, problem(old=True) | {"num_items_in_batch": items})


@pytest.mark.parametrize("items", [None, 40], ids=str)
def test_the_denominator_is_that_of_all_ranks(items: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are averaged over ranks: each divides by the step's tokens per rank."""
    inputs = problem(old=True)
    alone = Ours(beta=0.0)(**inputs)[0]
    monkeypatch.setattr(policy.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(policy.dist, "get_world_size", lambda: 2)
    # The other rank has 18 tokens.
    monkeypatch.setattr(policy.dist, "all_reduce", lambda total: total.add_(18))
    tokens = int(inputs["attention_mask"].sum())
    found = Ours(beta=0.0)(**inputs, num_items_in_batch=items)[0]
    per_rank = ((tokens + 18) if items is None else items) / 2
    torch.testing.assert_close(found, alone * tokens / per_rank)


@pytest.mark.parametrize(
    ("settings", "shift", "correction"),
    [
        # Factors so flat that clipped ratios show: k small, lambda at its floor.
        ({"vespo_k_pos": 0.01, "vespo_lambda_pos": 0.0}, [-30.0, 12.0, 12.0], None),
        ({"vespo_k_pos": 0.01, "vespo_lambda_pos": 0.0}, [-15.0, -15.0, -15.0], None),
        ({"vespo_k_pos": 0.01, "vespo_lambda_pos": -1.0}, [0.0], None),
        ({"vespo_k_pos": 0.01, "vespo_lambda_pos": 0.0}, [0.0], [0.0, 1e6, 1.0]),
        # Overflows: no weight rather than an infinite one.
        ({"vespo_k_pos": 60.0, "vespo_lambda_pos": 0.0}, [3.0], None),
    ],
    ids=["ratio of a token", "ratio of a sequence", "lambda", "correction", "overflow"],
)
def test_vespo_far_off_policy(
    settings: dict[str, Any], shift: list[float], correction: Any
) -> None:
    inputs = problem(old=True)
    inputs["advantages"] = torch.tensor([1.0, 0.7, 0.4])
    steps = torch.zeros(B, L)
    steps[:2, : len(shift)] = torch.tensor(shift)
    inputs["old_per_token_logps"] = inputs["old_per_token_logps"] - steps
    if correction is not None:
        inputs["vllm_is_ratio"] = torch.ones(B, L)
        inputs["vllm_is_ratio"][:, : len(correction)] = torch.tensor(correction)
    agree({"loss_type": "vespo", "beta": 0.0} | settings, inputs)


def test_reference_model_by_hidden_states() -> None:
    inputs = problem(old=True)
    del inputs["ref_per_token_logps"]
    gen = torch.Generator().manual_seed(9)
    reference = {
        "ref_input": torch.randn(B, L, D, generator=gen),
        "ref_weight": torch.randn(V, D, generator=gen),
        "ref_bias": torch.randn(V, generator=gen),
    }
    agree({"beta": 0.1, "temperature": 1.3}, inputs | reference)
    # Padding that is no token at all.
    padded = inputs["selected_token_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    agree({"beta": 0.1}, inputs | reference | {"selected_token_ids": padded})
    with pytest.raises(ValueError, match="use_ref_model=True: pass"):
        Ours()(**inputs)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_an_empty_mask_gives_zero(loss_type: str) -> None:
    inputs = problem(old=True)
    inputs["attention_mask"] = torch.zeros(B, L)
    found = run(Ours, {"loss_type": loss_type, "max_completion_length": 9}, inputs)
    assert found["loss"] == 0
    assert all(grad.abs().max() == 0 for grad in found["grads"])
    assert all(metric == 0 for metric in found["metrics"])


def test_signatures_are_liger_s() -> None:
    for name in ("__init__", "forward"):
        ours, theirs = (inspect.signature(getattr(cls, name)) for cls in (Ours, Theirs))
        assert [(p.name, p.default) for p in ours.parameters.values()] == [
            (p.name, p.default) for p in theirs.parameters.values()
        ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss_type": "ppo"}, "loss_type='ppo': accepted are 'grpo'"),
        ({"importance_sampling_level": "word"}, "importance_sampling_level='word'"),
        ({"importance_sampling_level": "sequence", "loss_type": "sapo"}, "ratio is per token"),
        ({"sapo_temperature_pos": 0.0}, "sapo_temperature_pos=0.0"),
        ({"delta": -1.0}, "delta=-1.0"),
        ({"loss_type": "dr_grpo"}, "needs max_completion_length"),
    ],
)
def test_bad_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Ours(**settings)
