"""The configuration: defaults, ranges, combinations."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
from transformers import TrainingArguments

from sdkernels import contexts
from sdkernels.train.config import SelfDistillConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_model_kind": "emma"}, "did you mean 'ema'"),
        ({"teacher_model_kind": "external"}, "needs teacher_model_name_or_path"),
        ({"teacher_model_name_or_path": "x"}, "has no effect with teacher_model_kind='frozen'"),
        (
            {"teacher_update_rate": 0.0},
            "=0.0: expected a number above 0, at most 1; it is the share",
        ),
        (
            {"teacher_model_kind": "trust_region", "teacher_update_rate": 1.0},
            "teacher_update_rate=1 with teacher_model_kind='trust_region': expected a number below",
        ),
        ({"teacher_update_rate": 1.5}, "expected a number above 0, at most 1"),
        ({"rollout_backend": "server"}, "needs rollout_server_url"),
        (
            {
                "rollout_backend": "server",
                "rollout_server_url": "http://h/v1",
                "rollout_server_sync": "folder",
            },
            "'folder' needs the server's model folder",
        ),
        ({"rollout_server_sync": "nfs"}, "expected one of none, folder, nccl"),
        ({"rollout_server_url": "http://h/v1"}, "has no effect with rollout_backend="),
        ({"rollout_server_logprobs": True}, "has no effect with rollout_backend="),
        ({"rollout_backend": "vllm"}, "expected one of transformers, server"),
        ({"aggregation": "mean"}, "expected one of token_mean, sequence_mean"),
        ({"num_generations": 0}, "expected a whole number of at least 1"),
        ({"num_iterations": 0}, "num_iterations=0: expected a whole number of at least 1"),
        (
            {"steps_per_generation": 3, "gradient_accumulation_steps": 2},
            "expected a multiple of gradient_accumulation_steps=2",
        ),
        ({"temperature": 0.0}, "expected a number above 0"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k=-1: expected a whole number of at least 0"),
        ({"temperature_eval": -1.0}, "temperature_eval=-1.0: expected a number of at least 0"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0: expected a number of at least 0, finite"),
        ({"learning_rate": math.nan}, "learning_rate=nan: expected a number of at least 0"),
        ({"learning_rate": math.inf}, "learning_rate=inf: .* finite"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1: expected a number of at least 0"),
        ({"max_grad_norm": -1.0}, r"max_grad_norm=-1.0: .* at least 0, finite \(0: gradients are"),
        ({"warmup_steps": -1}, "warmup_steps=-1: expected a number of at least 0"),
        ({"adam_beta2": 1.0}, "adam_beta2=1.0: expected a number of at least 0, below 1"),
        ({"num_train_epochs": -1.0}, "num_train_epochs=-1.0: expected a number above 0"),
        ({"min_p": 2.0}, "min_p=2.0: expected a number of at least 0, at most 1"),
        ({"seed": -1}, "seed=-1: expected a whole number of at least 0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0: expected a whole"),
        ({"engine_backend": "cuda"}, "engine_backend='cuda': expected one of .*, compiled"),
        ({"chunk_bytes": 0}, "chunk_bytes=0: expected a whole number of at least 1"),
        ({"remove_unused_columns": True}, "must stay off"),
        ({"recipe_args": "alpha"}, "expected key=value, got 'alpha'"),
        ({"recipe_args": "{alpha}"}, "not valid JSON"),
        ({"gate": "entropy_sing"}, "did you mean .entropy_sign."),
        ({"learning_rate": "abc"}, "learning_rate: expected float, got 'abc'"),
        ({"max_steps": 2.5}, "max_steps: expected int, got 2.5"),
        ({"save_total_limit": "two"}, "save_total_limit: expected int or None, got 'two'"),
        (
            {"lr_scheduler_type": "constant", "warmup_steps": 20},
            "warmup_steps=20 has no effect with lr_scheduler_type='constant'.*constant_with_warmup",
        ),
        (
            {"lr_scheduler_type": "constant", "warmup_steps": 0.1},
            "warmup_steps=0.1 has no effect with lr_scheduler_type='constant'",
        ),
        (
            {"lr_scheduler_type": "greedy", "warmup_steps": 3, "eval_strategy": "epoch"},
            "warmup_steps=3 has no effect with lr_scheduler_type='greedy'",
        ),
        (
            {"lr_scheduler_kwargs": {"num_cycles": 2}},
            "lr_scheduler_kwargs=.* no effect with lr_scheduler_type='constant_with_warmup'",
        ),
        ({"optim_args": "betas=.5"}, "optim_args='betas=.5' has no effect with optim='adamw_torch"),
        ({"label_smoothing_factor": 0.3}, "label_smoothing_factor=0.3 has no effect.* recipe"),
        ({"bf16_full_eval": True}, "bf16_full_eval=True has no effect.* dtype"),
        ({"fp16_full_eval": True}, "fp16_full_eval=True has no effect"),
        (
            {"train_sampling_strategy": "sequential", "num_iterations": 2},
            "train_sampling_strategy='sequential' has no effect with num_iterations=2",
        ),
    ],
)
def test_wrong_settings(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        SelfDistillConfig(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_wrong_kinds(tmp_path):
    with pytest.raises((TypeError, ValueError), match="recipe_args"):
        SelfDistillConfig(output_dir=str(tmp_path), recipe_args=3)
    with pytest.raises((TypeError, ValueError), match="num_generations"):
        SelfDistillConfig(output_dir=str(tmp_path), num_generations="8")


def test_every_own_setting_has_a_help_text():
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    for field in dataclasses.fields(SelfDistillConfig):
        if field.name not in inherited:
            assert len(field.metadata.get("help", "")) > 15, field.name


def test_nothing_is_reported_unless_asked(tmp_path):
    config = SelfDistillConfig(output_dir=str(tmp_path), use_cpu=True)
    assert config.report_to in ([], ["none"], "none")
    assert not config.remove_unused_columns


def test_labels(tmp_path):
    def label(**settings):
        return SelfDistillConfig(output_dir=str(tmp_path), use_cpu=True, **settings).label

    assert label(recipe="opsd", context="hint") == "opsd-hint"
    assert label(recipe="grpo", context="hint") == "grpo"
    assert label(recipe="grpo", condition="mine") == "mine"


@pytest.mark.parametrize(
    ("recipe", "recipe_args", "own"),
    [
        ("cepo", {}, "contrastive"),
        ("rosd", {}, "self_reflection"),
        ("grpo", {"kl_weight": 0.1}, "none"),
        ("opsd", {}, "reference_solution"),
    ],
)
def test_a_recipe_brings_a_context_only_where_none_is_named(tmp_path, recipe, recipe_args, own):
    common = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "recipe": recipe,
        "recipe_args": recipe_args,
    }
    silent = SelfDistillConfig(**common)
    assert silent.context == own
    assert "context" not in silent.changed()
    for name in ("reference_solution", "hint"):  # the first is the default
        named = SelfDistillConfig(**common, context=name)
        for config in (named, copy.deepcopy(named), dataclasses.replace(named)):
            assert config.context == config.changed()["context"] == name


def test_settings_of_a_context_alone_are_for_the_one_that_the_recipe_brings(tmp_path):
    common = {"output_dir": str(tmp_path), "use_cpu": True, "recipe": "cepo"}
    config = SelfDistillConfig(**common, context_args="negatives=2")
    own = SelfDistillConfig(**common)
    assert config.context == "contrastive"
    assert config.context_args == {**own.context_args, "negatives": 2}


@pytest.mark.parametrize("answer", ["999", "1e3", "007"])
def test_a_setting_of_a_context_that_is_text_is_what_was_typed(tmp_path, answer):
    config = SelfDistillConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        context="wrong_answer",
        context_args=f"choose=fixed,fixed={answer}",
    )
    assert contexts.get(config.context, **config.context_args).settings["fixed"] == answer


def test_the_context_of_rosd_follows_what_becomes_of_failed_groups(tmp_path):
    common = {"output_dir": str(tmp_path), "use_cpu": True, "recipe": "rosd"}
    assert SelfDistillConfig(**common).context_args is None
    config = SelfDistillConfig(**common, recipe_args={"skip_failed_groups": False})
    assert config.context_args == {"need_success": False}


def test_the_reference_model_of_grpo_gets_no_privileged_context(tmp_path):
    """A KL to a teacher that sees the solution would be distillation in GRPO's name."""
    common = {"output_dir": str(tmp_path), "use_cpu": True, "recipe": "grpo"}
    assert SelfDistillConfig(**common, recipe_args={"kl_weight": 0.1}).context == "none"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"warmup_steps": 5},
        {"lr_scheduler_type": "constant"},
        {"lr_scheduler_type": "linear", "warmup_steps": 0.1},
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 2}},
        {"optim": "sgd", "optim_args": "momentum=.9"},
        {"train_sampling_strategy": "sequential"},
        {"label_smoothing_factor": 0.0, "bf16_full_eval": False},
    ],
)
def test_settings_of_transformers_that_have_an_effect_pass(tmp_path, settings):
    SelfDistillConfig(output_dir=str(tmp_path), use_cpu=True, **settings)
