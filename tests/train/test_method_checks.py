"""Settings without effect and runs that cannot learn are refused before anything is loaded."""

import logging

import pytest

from sdkernels import contexts, recipes
from sdkernels.train.config import SelfDistillConfig
from sdkernels.train.method_checks import check_method


def check(tmp_path, **settings):
    config = SelfDistillConfig(output_dir=str(tmp_path), use_cpu=True, **settings)
    recipe = recipes.get(config.recipe, **config.mapping("recipe_args"))
    context = contexts.get(config.context, **config.mapping("context_args"))
    check_method(config, recipe, context)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": 0}, "max_steps=0"),
        ({"recipe": "grpo", "context": "hint"}, "context='hint' has no effect with recipe 'grpo'"),
        (
            {"recipe": "grpo", "recipe_args": {"kl_weight": 0.1}, "context": "hint"},
            "context='hint': with these recipe_args the teacher of recipe 'grpo' is the reference",
        ),
        (
            {
                "recipe": "grpo",
                "recipe_args": {"kl_weight": 0.1},
                "chat_template_kwargs": {"enable_thinking": False},
                "teacher_chat_template_kwargs": {"enable_thinking": True},
            },
            "teacher_chat_template_kwargs={'enable_thinking': True}: with these recipe_args",
        ),
        # Named at its default, a context is as little replaced as any other.
        (
            {"recipe": "cepo", "context": "reference_solution"},
            "context 'reference_solution' has no wrong one; set context=contrastive",
        ),
        (
            {"recipe": "grpo", "context": "reference_solution"},
            "context='reference_solution' has no effect with recipe 'grpo', which asks no teacher",
        ),
        (
            {"recipe": "nll", "context": "reference_solution"},
            "context='reference_solution' has no effect with recipe 'nll', which asks no teacher",
        ),
        (
            {
                "recipe": "grpo",
                "recipe_args": {"kl_weight": 0.1},
                "context": "reference_solution",
            },
            "context='reference_solution': .* answers the bare question (context='none'); leave it",
        ),
        (
            {
                "recipe": "rosd",
                "recipe_args": {"skip_failed_groups": False},
                "context": "self_reflection",
            },
            "skip_failed_groups=False has no effect with context 'self_reflection' and need_succ",
        ),
        ({"recipe": "grpo", "num_generations": 1}, "group of one has advantage 0"),
        (
            {"recipe": "sdpo", "context": "sibling_solution", "num_generations": 1},
            "never finds one in a group below 2; set 2 or more, or context_args allow_self=true",
        ),
        (
            {"context": "contrastive", "num_generations": 2},
            "num_generations=2: context 'contrastive' shows other rollouts of the same prompt and "
            "never finds one in a group below 3; set 3 or more$",
        ),
        (
            {"context": "majority_vote", "num_generations": 1},
            "context 'majority_vote' shows other .* below 2; set 2 or more$",
        ),
        (
            {
                "context": "regeneration",
                "context_args": {"of": "sibling"},
                "num_generations": 1,
            },
            "context 'regeneration' shows other .* set 2 or more, or context_args allow_self",
        ),
        (
            {
                "context": "wrong_answer",
                "context_args": {"choose": "sibling"},
                "num_generations": 1,
            },
            "context 'wrong_answer' shows other .* set 2 or more$",
        ),
        (
            {"teacher_model_kind": "live", "teacher_update_rate": 0.3},
            "teacher_update_rate=0.3 has no effect with teacher_model_kind='live'",
        ),
        ({"teacher_sync_steps": 3}, "teacher_sync_steps=3 has no effect"),
        (
            {"context": "hint", "critic_server_url": "http://localhost:9"},
            "critic_server_url='http://localhost:9' has no effect with context 'hint'",
        ),
    ],
)
def test_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        check(tmp_path, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"recipe": "grpo"},
        {"recipe": "grpo", "context": "none"},
        {"recipe": "grpo", "recipe_args": {"kl_weight": 0.1}},
        {
            "recipe": "grpo",
            "recipe_args": {"kl_weight": 0.1},
            "chat_template_kwargs": {"enable_thinking": False},
            "teacher_chat_template_kwargs": {"enable_thinking": False},
        },
        {"recipe": "opsd", "num_generations": 1},
        {"recipe": "rosd", "recipe_args": {"skip_failed_groups": False}},
        {
            "recipe": "rosd",
            "recipe_args": {"skip_failed_groups": False},
            "context": "self_reflection",
            "context_args": {"need_success": False},
        },
        {"context": "sibling_and_feedback", "num_generations": 1},
        {"teacher_model_kind": "ema", "teacher_update_rate": 0.3},
        {"teacher_model_kind": "snapshot", "teacher_sync_steps": 3},
        {"context": "step_critique", "critic_server_url": "http://localhost:9"},
        {
            "context": "sibling_solution",
            "num_generations": 1,
            "context_args": {"allow_self": True},
        },
    ],
)
def test_accepted(tmp_path, settings):
    check(tmp_path, **settings)


def test_another_context_than_the_published_one_is_used_and_named(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        check(tmp_path, recipe="rosd", context="reference_solution")
    assert "with reference_solution it trains on what that gives" in caplog.text


def test_an_advantage_over_a_group_of_one_is_named_as_idle(tmp_path, caplog):
    hybrid = {"recipe": "sdpo", "recipe_args": {"support": "sampled", "grpo_weight": 0.5}}
    for settings in ({"recipe": "dasd"}, {"recipe": "antisd"}, {"recipe": "srpo"}, hybrid):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            check(tmp_path, **settings, num_generations=1)
        assert f"advantage in recipe {settings['recipe']} compares the rollouts" in caplog.text
        caplog.clear()
        check(tmp_path, **settings, num_generations=2)
        check(tmp_path, recipe="sdpo", num_generations=1)
        assert not caplog.text


def test_settings_of_the_importance_ratio_are_named_as_idle(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        check(tmp_path, recipe="sdpo", recipe_args={"is_clip": 1.5})
    assert "is_clip" in caplog.text
    caplog.clear()
    check(tmp_path, recipe="sdpo", recipe_args={"alpha": 1.0})
    check(tmp_path, recipe="sdpo", recipe_args={"is_clip": 1.5}, num_iterations=2)
    assert not caplog.text


def test_recipes_without_a_ratio_are_named_where_rollouts_are_used_again(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        check(tmp_path, recipe="sdft", steps_per_generation=3, num_iterations=2)
    assert "sdft has no importance ratio: of the 6 optimiser steps" in caplog.text
    caplog.clear()
    check(tmp_path, recipe="grpo", num_iterations=2)
    assert not caplog.text
