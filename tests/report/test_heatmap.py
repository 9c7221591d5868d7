import json
import re
from pathlib import Path

from report.make_fixture import CONDITIONS, make_run, make_study

from sdkernels.report import heatmap
from sdkernels.report.load import Problems, Run, load_run


def load(folder: Path) -> Run:
    run = load_run(folder, f"{folder.name}/", Problems())
    run.label = run.condition
    return run


def rewrite(folder: Path, lines: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokens.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def render(*runs: Run) -> str:
    return heatmap.section(runs, heatmap.load(runs, Problems()))


def line(**values: object) -> dict:
    return {"step": 1, "example_id": "a", "tokens": ["x"], **values}


def test_the_first_and_last_step_of_one_common_example_are_chosen(tmp_path: Path) -> None:
    ids = [["b", "a"], ["c", "a"], ["a", "d"]]
    runs = [
        load(
            rewrite(
                tmp_path / str(at),
                [line(example_id=name, step=step) for step in (1, 2, 3) for name in names],
            )
        )
        for at, names in enumerate(ids)
    ]
    chosen = [(index, ref.step, ref.example_id) for index, ref in heatmap.choose(runs)]
    assert chosen == [(at, step, "a") for at in range(3) for step in (1, 3)]


def test_a_correct_and_a_wrong_rollout_are_chosen(tmp_path: Path) -> None:
    verdicts = [("a", True), ("b", False), ("c", False), ("a", False), ("d", None)]
    lines = [line(example_id=name, success=success) for name, success in verdicts]
    run = load(rewrite(tmp_path, lines))
    chosen = [(ref.example_id, ref.success) for _, ref in heatmap.choose([run])]
    assert chosen == [("a", True), ("a", False)]
    body = render(run)
    assert 'class="rollout is-correct"' in body
    assert 'class="rollout is-wrong"' in body
    assert body.count('name="only"') == 3


def test_nothing_is_filtered_where_all_rollouts_are_alike(tmp_path: Path) -> None:
    assert 'name="only"' not in render(load(rewrite(tmp_path, [line(), line(step=2)])))


def test_steps_have_the_mean_gap_of_their_tokens(tmp_path: Path) -> None:
    tokens = ["2+2=4", "\n", "so", " <b>", "\n", "end"]
    gaps = [0.5, 0.1, -1.0, -0.2, None, 0.0]
    body = render(load(rewrite(tmp_path, [line(tokens=tokens, gap=gaps)])))
    assert "Step by step: 3 steps" in body
    rows = re.findall(
        r'style="(\w+):50%;width:([\d.]+)%".*?class="mean">(.*?)<.*?said">(.*?)<', body
    )
    assert rows == [
        ("left", "25.0", "+0.300", "2+2=4 "),
        ("right", "50.0", "\u22120.600", "so &lt;b&gt;"),
        ("right", "0.0", "0", "end"),
    ]
    assert "<small>sums hold</small>" in body


def test_levels_follow_the_value_and_its_sign(tmp_path: Path) -> None:
    gaps = [-2.0, -1.0, 0.0, 1.0, 2.0]
    body = render(load(rewrite(tmp_path, [line(tokens=list("abcde"), gap=gaps)])))
    classes = re.findall(r'<i(?: class="([^"]*)")?>([a-e])</i>', body)
    assert classes == [("g-8", "a"), ("g-4", "b"), ("", "c"), ("g4", "d"), ("g8", "e")]


def test_the_scale_is_shared_and_robust_to_one_outlier(tmp_path: Path) -> None:
    gaps = [0.5] * 199 + [90.0]
    tokens = ["t"] * 200
    shown = heatmap.load([load(rewrite(tmp_path, [line(tokens=tokens, gap=gaps)]))], Problems())
    assert heatmap.scales(shown)["gap"] == 0.5


def test_markers_are_underlined_without_their_leading_space(tmp_path: Path) -> None:
    body = render(load(rewrite(tmp_path, [line(tokens=[" wait", "."], marker=[True, False])])))
    assert "<i> <u>wait</u></i><i>.</i>" in body


def test_tokens_without_text_of_their_own_can_still_be_seen(tmp_path: Path) -> None:
    body = render(load(rewrite(tmp_path, [line(tokens=["", "é"], gap=[1.0, 0.0])])))
    assert '<i class="g8"><b class="nl">▫</b></i><i>é</i>' in body


def test_views_nobody_recorded_are_not_offered(tmp_path: Path) -> None:
    body = render(load(make_run(tmp_path / "grpo", CONDITIONS[0])))
    assert "view-s" in body
    assert "view-g" not in body
    assert "how sure the student was" in body


def test_a_condition_without_gap_says_so_where_others_have_one(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    body = render(load(study / "grpo"), load(study / "dasd"))
    assert body.count("No teacher was consulted here, so there is no gap.") == 4
    assert body.count("No gate here") == 4


def test_what_only_the_teacher_read_is_marked(tmp_path: Path) -> None:
    prompts = {"prompt_text": "Q: 1+1? A:", "teacher_prompt_text": "Q: 1+1? <hint> 2. A:"}
    body = render(load(rewrite(tmp_path, [line(**prompts)])))
    assert "Q: 1+1? <mark>&lt;hint&gt; 2. </mark>A:" in body


def test_a_repeated_stretch_does_not_confuse_the_marking(tmp_path: Path) -> None:
    prompts = {"prompt_text": "aaaa", "teacher_prompt_text": "aaaaaa"}
    assert "aaaa<mark>aa</mark>" in render(load(rewrite(tmp_path, [line(**prompts)])))


def test_numbers_travel_as_json_in_the_order_of_the_tokens(tmp_path: Path) -> None:
    values = {"tokens": ["a", "b"], "logp": [-0.123456, None], "gap": [float("inf"), 0.5]}
    body = render(load(rewrite(tmp_path, [line(**values)])))
    found = re.search(r'id="rollout-0">(.*?)</script>', body)
    assert found
    assert json.loads(found[1]) == {"logp": [-0.1235, None], "gap": [None, 0.5]}


def test_values_that_are_no_numbers_are_reported(tmp_path: Path) -> None:
    problems = Problems()
    heatmap.load([load(rewrite(tmp_path / "run", [line(gap=["x"])]))], problems)
    assert list(problems) == [
        "run/tokens.jsonl line 1: 1 value neither null nor finite; shown as missing"
    ]


def test_long_rollouts_are_cut_to_the_page_and_say_so(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(heatmap, "MAX_PAGE_TOKENS", 100)
    long = load(rewrite(tmp_path / "long", [line(tokens=["w"] * 500)]))
    short = load(rewrite(tmp_path / "short", [line(tokens=["v"] * 10)]))
    body = render(long, short)
    assert body.count("<i>w</i>") == 90, "what the short one leaves free goes to the long one"
    assert body.count("<i>v</i>") == 10
    assert "410 more tokens left out" in body


def test_five_thousand_tokens_are_shown_whole(tmp_path: Path) -> None:
    body = render(load(rewrite(tmp_path, [line(tokens=["w"] * 5000)])))
    assert body.count("<i>w</i>") == 5000


def test_a_very_long_prompt_is_cut_and_says_so(tmp_path: Path) -> None:
    body = render(load(rewrite(tmp_path, [line(prompt_text="p" * 30_000)])))
    assert "10,000 more characters" in body


def test_no_rollouts() -> None:
    assert "No rollout was recorded" in heatmap.section([], [])
