from typing import Any

import pytest

from sdkernels.report import paired
from sdkernels.report.load import Run
from sdkernels.train.statistics import paired_difference

BEFORE = [0.0, 0.0, 1.0, 0.5, 0.25, 0.0]
AFTER = [0.5, 0.0, 1.0, 1.0, 0.75, 0.5]


def entries(scores: list[float], **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"p{at}", "accuracy": score, **more} for at, score in enumerate(scores)]


def run(tmp_path: Any, name: str, before: Any, after: Any) -> Run:
    summary = {"condition": name, "title": name, "steps": 1}
    found = Run(tmp_path, "", summary, label=name)
    found.problems = {"before": before, "after": after}
    return found


def test_differences_are_those_of_the_same_problems(tmp_path: Any) -> None:
    shuffled = list(reversed(entries(AFTER)))
    _, ((cell, *_),) = paired.columns([run(tmp_path, "a", entries(BEFORE), shuffled)])
    expected: Any = paired_difference(BEFORE, AFTER)
    low, high = (100 * bound for bound in expected["interval"])
    assert cell.shown == f"+{100 * expected['difference']:.1f}" == "+33.3"
    assert cell.extra == f"+{low:.1f} to +{high:.1f}"
    assert cell.state == "apart"


def test_a_difference_whose_interval_holds_0_is_not_bold(tmp_path: Any) -> None:
    mixed = [score + (0.25 if at % 2 else -0.25) for at, score in enumerate(BEFORE)]
    _, ((cell, *_),) = paired.columns([run(tmp_path, "a", entries(BEFORE), entries(mixed))])
    assert (cell.shown, cell.state) == ("0", "value")
    assert "to" in cell.extra


def test_where_no_problem_differs_there_is_no_interval_to_trust(tmp_path: Any) -> None:
    same = entries(BEFORE)
    _, ((cell, *_),) = paired.columns([run(tmp_path, "a", same, same)])
    assert (cell.shown, cell.extra) == ("0", "no problem differs")


def test_runs_are_compared_with_the_first(tmp_path: Any) -> None:
    runs = [
        run(tmp_path, "base", [], entries(BEFORE)),
        run(tmp_path, "other", [], entries(AFTER)),
    ]
    heads, cells = paired.columns(runs)
    assert heads[3].group == "Difference to base after training"
    assert [cell.shown for cell in cells[0][3:]] == ["base"] * 3
    assert cells[1][3].shown == "+33.3"
    body = paired.section(runs)
    assert '<span class="apart">+33.3' in body
    assert "one of the two evaluations was not recorded" in body


def test_one_problem_has_no_interval(tmp_path: Any) -> None:
    both = entries(BEFORE[:1]), entries(AFTER[:1])
    _, ((cell, *_),) = paired.columns([run(tmp_path, "a", *both)])
    assert (cell.shown, cell.state, cell.extra) == ("+50.0", "value", "1 problem")


@pytest.mark.parametrize(
    ("after", "why"),
    [
        ([], "one of the two evaluations was not recorded"),
        (entries(AFTER)[:3], "the two evaluations are of different problems"),
        ([{"id": "p0"}], "the two evaluations are of different problems"),
    ],
)
def test_what_cannot_be_paired_says_why(tmp_path: Any, after: Any, why: str) -> None:
    _, ((cell, *_),) = paired.columns([run(tmp_path, "a", entries(BEFORE), after)])
    assert (cell.state, cell.why) == ("missing", why)


def test_what_older_evaluations_lack_is_said(tmp_path: Any) -> None:
    _, (cells,) = paired.columns([run(tmp_path, "a", entries(BEFORE), entries(AFTER))])
    assert [cell.why for cell in cells[1:]] == ["the evaluations did not record it"] * 2


def test_without_evaluations_there_is_no_table(tmp_path: Any) -> None:
    body = paired.section([run(tmp_path, "a", [], []), run(tmp_path, "b", [], [])])
    assert "nothing can be paired" in body


def change(tmp_path: Any, name: str, by: list[float], half_width: float = 0.2) -> Run:
    """A run whose scores change by these numbers; the two marginal intervals are wide."""
    before = [0.5, 0.2, 0.8, 0.4, 0.6, 0.3]
    after = [a + b for a, b in zip(before, by, strict=True)]
    found = run(tmp_path, name, entries(before), entries(after))
    for when, scores in (("before", before), ("after", after)):
        mean = sum(scores) / 6
        bounds = [mean - half_width, mean + half_width]
        found.summary[when] = {"accuracy": mean, "accuracy_ci": bounds}
    return found


def test_the_headline_follows_the_paired_interval_where_the_two_intervals_overlap(
    tmp_path: Any,
) -> None:
    fell = change(tmp_path, "fell", [-0.1, -0.2, -0.1, -0.2, -0.1, -0.2])
    same = change(tmp_path, "same", [0.1, -0.1, 0.1, -0.1, 0.1, -0.1])
    said = paired.compare_accuracy([same, fell])
    (_, (fell_cell, *_)) = paired.columns([same, fell])[1]
    assert fell_cell.state == "apart"
    assert said.startswith("Accuracy changed in 1 of 2 conditions")
    assert f"fell \N{MINUS SIGN}15.0 points ({fell_cell.extra})" in said


def test_the_headline_claims_nothing_where_the_two_intervals_are_apart_but_the_paired_holds_0(
    tmp_path: Any,
) -> None:
    mixed = change(tmp_path, "mixed", [0.5, -0.1, -0.1, 0.5, -0.1, -0.1], half_width=0.01)
    said = paired.compare_accuracy([mixed, mixed])
    assert said.startswith("No paired 95 % interval")
    assert said.endswith("(2 conditions), so no change in accuracy can be claimed.")
    without = run(tmp_path, "x", [], [])
    assert "(1 condition evaluated both times)" in paired.compare_accuracy([mixed, without])


def test_the_headline_names_a_few_and_counts_the_rest(tmp_path: Any) -> None:
    runs = [change(tmp_path, f"r{at}", [0.1, 0.2] * 3) for at in range(6)]
    said = paired.compare_accuracy(runs)
    assert "in 6 of 6 conditions" in said
    assert said.endswith("; and 2 more.")


def test_without_pairs_there_is_no_headline(tmp_path: Any) -> None:
    assert paired.compare_accuracy([run(tmp_path, "x", [], [])]) == ""
