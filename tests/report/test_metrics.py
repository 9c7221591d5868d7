from sdkernels import recipes
from sdkernels.report.metrics import MEAN_KEYS, METRICS, PHASES
from sdkernels.train.step_metrics import MEANS, SECTIONS, SUMS


def test_every_metric_of_a_report_is_one_that_the_trainer_writes() -> None:
    written = {*MEANS, *SUMS, "loss", "grad_norm"}
    assert {metric.key for metric in METRICS} <= written
    assert set(MEAN_KEYS) <= written
    assert [key for key, _ in PHASES] == list(SECTIONS)


def test_titles_are_told_apart_and_explained() -> None:
    titles = [metric.title for metric in METRICS]
    assert len(titles) == len(set(titles))
    assert all(metric.explain.endswith((".", "...")) for metric in METRICS)


def test_rollouts_without_a_context_still_teach_recipes_with_a_verifier() -> None:
    [metric] = [metric for metric in METRICS if metric.key == "signal_share"]
    assert recipes.get("dasd").anchored
    assert "teach nothing" not in metric.explain
    assert "verifier" in metric.explain
