import json
from pathlib import Path

import pytest
from report.make_fixture import make_study, teacher_accuracy

from sdkernels.report import build, teacher, teacher_table
from sdkernels.report.load import Problems


def test_the_table_of_the_page(tmp_path: Path) -> None:
    body = teacher.section(teacher_accuracy())
    assert '<span class="name">reference_solution</span>' in body
    assert "88.0\u2013100.0" in body
    assert '<span class="apart">+65.0<small>+59.0 to +72.0</small>' in body
    assert "<span>+4.00<small>\u22122.00 to +11.0</small>" in body
    assert "smollm2, 32 problems, 4 answers each." in body


def test_a_context_with_nothing_to_say_has_dashes_not_zeros() -> None:
    body = teacher.section(teacher_accuracy())
    row = body.split('<span class="name">hint</span>')[1].split("</tr>")[0]
    assert row.count('class="missing"') == 10
    assert "the context had nothing to say for any problem" in row


def test_one_problem_has_no_interval() -> None:
    change = {"difference": -0.5, "interval": [-0.5, -0.5], "n": 1}
    entry = {"context": "hint", "n": 1, "accuracy": 0.0, "accuracy_ci": [0, 0], "change": change}
    body = teacher.section({"contexts": [entry]})
    assert body.count("<small>1 problem</small>") == 2
    assert 'class="apart"' not in body


def test_where_no_problem_differs_there_is_no_interval_to_trust() -> None:
    """docs/analysis.md promises it: resampling equal numbers always gives 0."""
    change = {"difference": 0.0, "interval": [0.0, 0.0], "n": 2, "better": 0, "worse": 0}
    entry = {"context": "regeneration", "n": 2, "accuracy": 0.5, "change": change}
    body = teacher.section({"contexts": [entry]})
    assert "<span>0<small>no problem differs</small>" in body
    assert "0 to 0" not in body
    change |= {"better": 1, "worse": 1, "interval": [-0.5, 0.5]}
    assert "to +50.0" in teacher.section({"contexts": [entry]})


def test_a_change_to_the_second_answers_is_marked() -> None:
    result = teacher_accuracy()
    assert "second set" not in teacher.section(result) + teacher_table(result)
    result["contexts"][2]["change"]["baseline"] = "second"
    body = teacher.section(result)
    assert "<span>+4.00*<small>" in body
    assert "+65.0*" not in body
    assert '<p class="foot">* Compared with a second set of answers' in body
    lines = teacher_table(result).splitlines()
    assert next(line for line in lines if line.startswith("verifier")).split()[3] == "+4.00*"
    assert any(line.startswith("* Compared with a second set") for line in lines)


def test_pass_and_majority_over_all_answers() -> None:
    result = teacher_accuracy()
    body = teacher.section(result)
    row = body.split('<span class="name">reference_solution</span>')[1].split("</tr>")[0]
    assert 'data-label="Pass@4, %"><span>100.0</span>' in row
    assert 'data-label="Maj@4, %"><span>95.0</span>' in row
    assert "nothing to say for some of the answers" in body
    assert "Pass@" not in teacher.section(result | {"k": 1})


def test_without_a_result_the_page_says_how_to_get_one(tmp_path: Path) -> None:
    assert "sdkernels eval --context" in teacher.section(None)
    page = build(make_study(tmp_path)).read_text(encoding="utf-8")
    assert "sdkernels eval --context" not in page
    (tmp_path / "teacher_accuracy.json").unlink()
    assert "sdkernels eval --context" in build(tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["{", "[]", '{"contexts": 3}', '{"contexts": [1]}'])
def test_a_damaged_result_is_noted(tmp_path: Path, text: str) -> None:
    (tmp_path / teacher.FILE).write_text(text)
    problems = Problems()
    assert teacher.load(tmp_path, problems) is None
    assert [problem.split(":")[0] for problem in problems] == [teacher.FILE]


def test_hostile_names_and_numbers(tmp_path: Path) -> None:
    entry = {"context": "<b>", "settings": {"a": "<i>"}, "accuracy": float("nan"), "answers": "x"}
    body = teacher.section({"contexts": [entry], "n": 1e400, "model": "</table>"})
    assert "<b>" not in body
    assert "&lt;b&gt; (a=&lt;i&gt;)" in body
    assert body.count("</table>") == 1
    assert 'class="bad"' in body


def test_the_table_of_the_terminal() -> None:
    lines = teacher_table(teacher_accuracy()).splitlines()
    words = (
        "context score 95 % change Pass@4 Maj@4 length markers markers markers entropy cut answers"
    )
    assert " ".join(lines[0].split()) == words
    row = next(line for line in lines if line.startswith("reference_solution"))
    assert row.split()[:6] == ["reference_solution", "95.0", "88.0-100.0", "+65.0", "100.0", "95.0"]
    hint = next(line for line in lines if line.startswith("hint"))
    assert hint.split() == ["hint", *["-"] * 11, "0"]
    assert max(map(len, lines)) <= 120
    "\n".join(lines).encode("ascii")


def test_what_eval_writes_is_what_the_page_reads(tmp_path: Path) -> None:
    from sdkernels.train.teacher_accuracy import TEACHER_FILE, save

    assert save(tmp_path, teacher_accuracy()).name == TEACHER_FILE == teacher.FILE
    found = teacher.load(tmp_path, Problems())
    assert found == json.loads(json.dumps(teacher_accuracy()))
