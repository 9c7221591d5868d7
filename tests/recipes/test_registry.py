import math
from typing import Any

import pytest
import torch
from recipes.world import make_world, plain_stats, run_engine
from torch import Tensor

import sdkernels as sd
from sdkernels import recipes
from sdkernels.engine.stats import Tokens
from sdkernels.recipes.registry import Body, register

# Every recipe, with the settings that make another code path of it.
CONFIGURATIONS: list[tuple[str, dict[str, Any]]] = [
    ("nll", {}),
    ("grpo", {}),
    ("grpo", {"kl_weight": 0.5}),
    ("grpo", {"kl_weight": 0.5, "kl_form": "k3"}),
    ("opsd", {}),
    ("opsd", {"beta": 0.5}),
    ("opsd", {"support": "teacher_topk", "topk": 5}),
    ("sdpo", {}),
    ("sdpo", {"alpha": 1.0}),
    ("sdpo", {"support": "student_topk", "topk": 5}),
    ("sdpo", {"support": "student_topk", "topk": 5, "tail": False, "alpha": 0.0}),
    ("sdpo", {"support": "sampled"}),
    ("sdpo", {"grpo_weight": 0.9}),
    ("opsd", {"support": "sampled"}),
    ("sdft", {}),
    ("gkd", {}),
    ("distill_sampled", {}),
    ("rlsd", {}),
    ("rlsd", {"evidence": "old"}),
    ("rlrt", {}),
    ("cepo", {}),
    ("rlcsd", {}),
    ("srpo", {}),
    ("srpo", {"route": "advantage", "support": "student_topk", "topk": 5}),
    ("antisd", {}),
    ("rosd", {}),
    ("eopd", {}),
    ("eopd", {"base": "sampled", "topk": 5, "tail": True}),
    ("dasd", {}),
    ("dasd", {"push_all_fail": False}),
    ("dasd", {"form": "full_vocab"}),
    ("dasd", {"form": "logit_level", "topk": 5}),
    ("dasd", {"direction": "push", "push_ceiling": 1.5}),
]
every_configuration = pytest.mark.parametrize(("name", "cfg"), CONFIGURATIONS)


def leaves(name: str, cfg: dict[str, Any]) -> tuple[recipes.Recipe, dict[str, Tensor], Tokens]:
    """A recipe, statistics that record gradients one by one, and its inputs."""
    world = make_world()
    recipe = recipes.get(name, **cfg)
    stats = {
        key: value.detach().requires_grad_(value.is_floating_point())
        for key, value in plain_stats(world, recipe.engine).items()
    }
    return recipe, stats, Tokens({key: value.clone() for key, value in world.tokens.items()})


def gradients(loss_C: Tensor, stats: dict[str, Tensor]) -> dict[str, Tensor]:
    live = {key: value for key, value in stats.items() if value.requires_grad}
    found = torch.autograd.grad(loss_C.sum(), list(live.values()), allow_unused=True)
    return {key: g for key, g in zip(live, found, strict=True) if g is not None}


def test_the_first_eight_are_there() -> None:
    eight = {"nll", "grpo", "opsd", "sdpo", "sdft", "dasd", "gkd", "distill_sampled"}
    assert eight <= set(recipes.names())
    assert recipes.names() == sorted(recipes.names())
    assert {name for name, _ in CONFIGURATIONS} == set(recipes.names())


@every_configuration
def test_a_recipe_says_what_it_is(name: str, cfg: dict[str, Any]) -> None:
    recipe = recipes.get(name, **cfg)
    assert recipe.name == name
    assert recipe.summary
    assert recipe.source
    assert recipe.needs <= {"teacher", "rewards", "old_logp", "group", "gate"}
    assert "weight" in recipe.inputs
    assert set(recipe.config) == set(recipe.defaults)
    assert cfg.items() <= recipe.config.items()
    assert recipe.defaults == recipes.get(name).defaults


def test_an_unknown_recipe_gets_the_nearest_name() -> None:
    with pytest.raises(
        ValueError, match=r"unknown recipe: 'gropo'; did you mean 'grpo' or 'srpo'\?.* sdpo"
    ):
        recipes.get("gropo")
    with pytest.raises(ValueError, match=r"setting of recipe 'grpo': 'cliphigh'.*'clip_high'"):
        recipes.get("grpo", cliphigh=0.3)


@pytest.mark.parametrize(
    ("published", "ours"), [("SFT", "nll"), ("Anti-SD", "antisd"), ("RLSD", "rlsd")]
)
def test_the_name_of_a_paper_suggests_what_came_from_it(published: str, ours: str) -> None:
    with pytest.raises(ValueError, match=rf"did you mean (.* or )?'{ours}'( or .*)?\? Known"):
        recipes.get(published)


def test_a_recipe_is_its_own() -> None:
    """Changing one object's dictionaries does not reach the next."""
    recipes.get("opsd").engine["entry_clip"] = 7.0
    recipes.get("opsd").config["beta"] = 1.0
    assert recipes.get("opsd").engine["entry_clip"] == 0.05
    assert recipes.get("opsd").config["beta"] == 0.0


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'nll' is registered twice"):
        register("nll", summary="", source="")(lambda: Body(lambda s, tok: s.logp))


@every_configuration
def test_the_weight_multiplies(name: str, cfg: dict[str, Any]) -> None:
    recipe, stats, tok = leaves(name, cfg)
    once = recipe.loss_fn(sd.TokenStats(stats), tok)
    assert once.shape == (12,)
    tok.weight = -3.0 * tok.weight
    torch.testing.assert_close(recipe.loss_fn(sd.TokenStats(stats), tok), -3.0 * once)


@every_configuration
def test_nothing_at_a_token_of_weight_0_enters(name: str, cfg: dict[str, Any]) -> None:
    """Not even NaN: the loss and every gradient stay what they are without that token."""
    recipe, stats, tok = leaves(name, cfg)
    loss = recipe.loss_fn(sd.TokenStats(stats), tok)
    clean = gradients(loss, stats)
    poisoned = {
        key: torch.where(shaped(tok.weight == 0, value), math.nan, value).detach().requires_grad_()
        if value.is_floating_point()
        else value
        for key, value in stats.items()
    }
    weight = tok.weight
    for key, value in list(vars(tok).items()):
        setattr(tok, key, torch.where(weight == 0, math.nan, value.double()))
    tok.weight = weight
    assert bool((weight == 0).any())
    poisoned_loss = recipe.loss_fn(sd.TokenStats(poisoned), tok)
    torch.testing.assert_close(poisoned_loss, loss, rtol=0, atol=0)
    torch.testing.assert_close(gradients(poisoned_loss, poisoned), clean, rtol=0, atol=0)


def shaped(mask_C: Tensor, like: Tensor) -> Tensor:
    return mask_C.reshape(-1, *[1] * (like.dim() - 1))


@every_configuration
def test_no_gradient_reaches_teacher_or_inputs(name: str, cfg: dict[str, Any]) -> None:
    recipe, stats, tok = leaves(name, cfg)
    inputs = {key: value for key, value in vars(tok).items() if value.is_floating_point()}
    for value in inputs.values():
        value.requires_grad_()
    loss = recipe.loss_fn(sd.TokenStats(stats), tok)
    reached = gradients(loss, stats | inputs)
    live = {key for key, gradient in reached.items() if gradient.any()}
    assert live
    # The engine's own divergences are differentiable in the student only.
    assert live <= {
        "logp",
        "kl_teacher_student",
        "kl_student_teacher",
        "clipped_kl_teacher_student",
        "jsd",
        "topk_logp",
    }


@every_configuration
def test_a_token_does_not_see_the_others(name: str, cfg: dict[str, Any]) -> None:
    recipe, stats, tok = leaves(name, cfg)
    whole = recipe.loss_fn(sd.TokenStats(stats), tok)
    parts = [
        recipe.loss_fn(
            sd.TokenStats({key: value[i : i + 1] for key, value in stats.items()}),
            Tokens({key: value[i : i + 1] for key, value in vars(tok).items()}),
        )
        for i in range(12)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-14, atol=1e-16)


@every_configuration
def test_no_token_at_all(name: str, cfg: dict[str, Any]) -> None:
    recipe, stats, tok = leaves(name, cfg)
    none = sd.TokenStats({key: value[:0] for key, value in stats.items()})
    assert recipe.loss_fn(none, Tokens({k: v[:0] for k, v in vars(tok).items()})).shape == (0,)


@every_configuration
def test_a_batch_without_weight_is_0(name: str, cfg: dict[str, Any]) -> None:
    world = make_world()
    world = world.having(weight=recipes.aggregate(torch.zeros(12, dtype=torch.bool)))
    for part in run_engine(recipes.get(name, **cfg), world):
        assert not part.any()


@every_configuration
def test_float32_statistics_are_enough(name: str, cfg: dict[str, Any]) -> None:
    recipe, stats, tok = leaves(name, cfg)
    exact = recipe.loss_fn(sd.TokenStats(stats), tok)
    half_stats = {k: v.float() if v.is_floating_point() else v for k, v in stats.items()}
    half = recipe.loss_fn(sd.TokenStats(half_stats), tok)
    torch.testing.assert_close(half.double(), exact, rtol=2e-5, atol=2e-6)


def test_missing_inputs_are_named_with_how_to_make_them() -> None:
    world = make_world().without("adv", "gap_scale")
    with pytest.raises(ValueError, match=r"recipe 'dasd' needs tokens\['adv'\]") as error:
        run_engine(recipes.get("dasd"), world)
    assert "(missing: adv, gap_scale)" in str(error.value)
    assert "sd.recipes.group_advantages" in str(error.value)
    assert "sd.recipes.gap_scale" in str(error.value)
    with pytest.raises(ValueError, match=r"needs tokens\['weight'\].*sd.recipes.aggregate"):
        run_engine(recipes.get("nll"), make_world().without("weight"))


def test_a_missing_statistic_is_named_by_the_engine() -> None:
    world = make_world()
    with pytest.raises(ValueError, match="jsd_beta="):
        sd.token_loss(
            world.hidden_CD,
            world.weight_VD,
            recipes.get("gkd").loss_fn,
            teacher=sd.LogitsTeacher(world.teacher_CV),
            tokens=world.tokens,
        )


def test_the_table_has_a_row_for_each_with_every_setting_explained() -> None:
    rows = {row["name"]: row for row in recipes.table()}
    assert list(rows) == recipes.names()
    for name, row in rows.items():
        recipe = recipes.get(name)
        assert set(row["needs"]) == recipe.needs
        assert {s["name"]: s["default"] for s in row["settings"]} == recipe.defaults
        assert all(s["doc"] and s["accepts"] for s in row["settings"])
        assert row["source"] == recipe.source
    clip = next(s for s in rows["opsd"]["settings"] if s["name"] == "entry_clip")
    assert "nats" in clip["doc"]
