"""Every configuration of a published experiment loads, and says where its numbers come from."""

from pathlib import Path

import pytest

from sdkernels import contexts, recipes
from sdkernels.train import experiments as module
from sdkernels.train.config_file import parse_config
from sdkernels.train.experiments import configs_folder, experiments, find
from sdkernels.train.method_checks import check_method
from sdkernels.train.step_loss import make_gate

NAMES = list(experiments())


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_at_full_scale(name: str, tmp_path: Path) -> None:
    experiment = experiments()[name]
    config = parse_config(
        ["--config", str(experiment.file), "--output_dir", str(tmp_path), "--use_cpu"]
    )
    recipe = recipes.get(config.recipe, **config.mapping("recipe_args"))
    context = contexts.get(config.context, **config.mapping("context_args"))
    check_method(config, recipe, context)
    make_gate(config, recipe)
    assert config.title
    assert config.dataset
    assert config.eval_dataset
    published = experiment.published()
    assert published.source.startswith(("2603.24472", "2606.11173", "2605.22263"))
    assert published.differs


def test_titles_are_all_different_within_a_study() -> None:
    titles = [(e.study, e.settings()["title"]) for e in experiments().values()]
    assert len(set(titles)) == len(titles)


def test_the_three_studies_are_complete() -> None:
    for size in ("1", "8", "64", "128", "512", "14k"):
        for method in ("grpo", "sdpo"):
            assert f"degrade/coverage-{size}-{method}" in NAMES
    for context in ("empty", "solution", "without-thinking", "regeneration"):
        assert f"degrade/ds7b-sdpo-{context}" in NAMES
    for model in ("ds7b", "qwen3-8b", "olmo3-7b"):
        assert f"degrade/{model}-grpo" in NAMES
    assert {e.name for e in find("feedback-alignment")} == {
        f"feedback-alignment/{name}" for name in ("grpo", "refsol", "stepalignfb")
    }
    for name in ("grpo", "sdpo", "dasd", "uniform-pull", "uniform-push", "hard-gate"):
        assert f"dasd/{name}" in NAMES


def test_what_differs_between_the_conditions_is_the_context_alone() -> None:
    def settings(name: str) -> dict[str, object]:
        found = experiments()[name].settings()
        changed = ("title", "context", "context_args", "critic_max_new_tokens")
        return {key: value for key, value in found.items() if key not in changed}

    base = settings("degrade/ds7b-sdpo-solution")
    for name in ("empty", "without-thinking", "regeneration"):
        assert settings(f"degrade/ds7b-sdpo-{name}") == base


def test_findings_of_the_token_analysis_stand_with_the_tokens_that_they_are_about() -> None:
    """Low entropy pulled alone: +18.3 % StepAcc; high entropy pushed alone: +61.3 % E(y)."""
    where = {}
    for experiment in find("dasd"):
        for result in experiment.published().results:
            if result.finding is not None or result.after == 0.7:
                args = experiment.settings()["recipe_args"]
                gate = experiment.settings()["gate"], args.get("direction")
                where[result.metric, result.finding or result.after] = experiment.name, gate
    adaptive, sign = "direction_adaptive", "entropy_sign"
    assert where == {
        ("E(y)", 0.7): ("dasd/uniform-pull", (sign, None)),
        ("StepAcc on scaffolding tokens", "-79.4 %"): ("dasd/uniform-push", (sign, None)),
        ("StepAcc", "+18.3 %"): ("dasd/pull-low-entropy", (adaptive, "pull_low")),
        ("E(y)", "+61.3 %"): ("dasd/push-high-entropy", (adaptive, "push_high")),
    }


def test_coverage_fills_whole_batches() -> None:
    for method in ("grpo", "sdpo"):
        for size in (1, 8, 64, 128, 512):
            found = experiments()[f"degrade/coverage-{size}-{method}"].settings()
            repeat = found.get("dataset_repeat", 1)
            assert isinstance(repeat, int)
            assert found["dataset_size"] == size
            assert size * repeat % 64 == 0
            batch = found["per_device_train_batch_size"] * found["steps_per_generation"] * 4
            assert batch == 64


def test_the_order_is_that_of_numbers() -> None:
    coverage = [name for name in NAMES if "coverage" in name and "sdpo" in name]
    assert [name.split("-")[1] for name in coverage] == ["1", "8", "64", "128", "512", "14k"]


def test_find_knows_names_studies_and_the_nearest() -> None:
    assert [e.name for e in find("dasd/dasd")] == ["dasd/dasd"]
    assert len(find("degrade/")) == sum(name.startswith("degrade/") for name in NAMES)
    with pytest.raises(ValueError, match=r"unknown experiment 'dasd/dsad'; did you mean dasd/dasd"):
        find("dasd/dsad")
    with pytest.raises(ValueError, match=r"did you mean .*feedback-alignment/refsol"):
        find("refsol")
    with pytest.raises(ValueError, match="'zzz'; `sdkernels reproduce` lists them all"):
        find("zzz")


def test_missing_configurations_are_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (configs_folder() / "dasd" / "_study.yaml").is_file()
    monkeypatch.setattr(module, "FOLDERS", (tmp_path / "a", tmp_path / "b"))
    with pytest.raises(ValueError, match=r"missing: expected them in .* install the package again"):
        experiments()
