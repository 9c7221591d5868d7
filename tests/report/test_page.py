import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report.make_fixture import CONDITIONS, make_run, make_study

from sdkernels.report import build

NASTY = (
    "<script>alert(1)</script></script><!-- <img src=x onerror=alert(1)> \"double\" 'single' & "
    "{{style}} \n\r\x00\x1b \u202e\u2028 東京 👩‍👩‍👧 \ud800 </pre></td></title></style>"
)


class Page(HTMLParser):
    """Collects tags, attributes, script texts and visible text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self.feed(source)
        self.close()

    VOID = ("meta", "input", "link", "br", "img", "hr")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append((self.tags[-1][1], data))
        elif not self.open or self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    study = make_study(tmp_path_factory.mktemp("study"))
    return build(study, order=[row[0] for row in CONDITIONS]).read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_has_every_part(source: str) -> None:
    page = Page(source)
    assert page.open == []
    headings = re.findall(r"<h2[^>]*>([^<]+)</h2>", source)
    assert headings == [
        "Conditions",
        "Accuracy before and after",
        "Paired changes",
        "What the teacher knows",
        "Learning curves",
        "Correct and wrong rollouts",
        "Step by step",
        "By entropy",
        "Style and math tokens",
        "Epistemic markers",
        "Token by token",
        "Where a step's time goes",
        "Terms",
        "Settings and versions",
    ]
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    assert links <= {f"#{name}" for name in ids}
    sections = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert links == {f"#{name}" for name in sections}


def test_every_section_says_how_to_read_it(source: str) -> None:
    sections = re.findall(r'<section id="(\w+)".*?</section>', source, re.DOTALL)
    told = re.findall(r'<section id="(\w+)"[^>]*>\s*<h2[^>]*>[^<]*</h2>\s*<p', source)
    assert set(sections) - set(told) == {"glossary", "settings"}


def test_no_section_of_a_whole_study_is_empty(source: str) -> None:
    assert 'class="empty"' not in source


def test_the_head_says_what_was_run_and_what_it_proves(source: str) -> None:
    text = Page(source).text
    assert "6 conditions, one model, side by side" in text
    assert "SmolLM2-135M-Instruct was trained for 3 steps on reasoning_gym/chain_sum" in text
    assert "A few steps on a 135M model show the mechanics, not the science" in text
    assert "so no change in accuracy can be claimed" in text


def test_the_head_names_only_what_really_differs(tmp_path: Path) -> None:
    for number, context in enumerate(("sibling_solution", "hint")):
        row = (f"sdpo-{number}", "SDPO", "sdpo", context, "frozen", 0.5)
        make_run(tmp_path / row[0], row)
    text = Page(build(tmp_path).read_text(encoding="utf-8")).text
    assert "They differ in what the teacher is told." in text


def test_every_condition_has_a_heat_map(source: str) -> None:
    assert source.count('<details class="condition" open>') == len(CONDITIONS)
    assert source.count('class="tokens"') == 4 * len(CONDITIONS)
    for prefix in "gstd":
        assert f'id="view-{prefix}"' in source


def test_nothing_is_fetched_from_outside(source: str) -> None:
    assert not re.search(r"(?:https?:)?//[a-z0-9]", source, re.IGNORECASE)
    assert "@import" not in source
    assert "url(" not in source
    for tag, attrs in Page(source).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img")
        assert "src" not in attrs
        assert all(not name.startswith("on") for name in attrs)
        assert (attrs.get("href") or "#").startswith("#")


def test_only_our_own_script_may_run(source: str) -> None:
    code = [text for attrs, text in Page(source).scripts if "type" not in attrs]
    assert len(code) == 1
    digest = base64.b64encode(hashlib.sha256(code[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in source


def test_no_placeholder_and_no_machine_is_left_in_the_page(source: str, tmp_path: Path) -> None:
    assert "{{" not in source
    assert str(tmp_path.parent) not in source


def nasty_run(folder: Path) -> Path:
    """Write a run in which every text that comes from outside is hostile."""
    make_run(folder)
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("condition", "title", "recipe", "context", "teacher", "model"):
        summary[key] = NASTY
    summary["seed"] = NASTY
    summary["config"] = {"dataset": NASTY, NASTY: NASTY}
    summary["versions"] = {NASTY: NASTY}
    (folder / "summary.json").write_text(json.dumps(summary))
    line = {
        "condition": NASTY,
        "step": 1,
        "example_id": NASTY,
        "success": True,
        "prompt_text": NASTY,
        "teacher_prompt_text": f"before {NASTY} after",
        "tokens": [NASTY, *NASTY],
        "logp": [-1.0] * (1 + len(NASTY)),
        "marker": [True] * (1 + len(NASTY)),
    }
    (folder / "tokens.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(NASTY) + "\n")
    return folder


@pytest.mark.parametrize("study", [False, True])
def test_hostile_text_is_shown_and_never_run(tmp_path: Path, study: bool) -> None:
    nasty_run(tmp_path / "run")
    if study:
        make_run(tmp_path / "other")
    source = build(tmp_path if study else tmp_path / "run").read_text(encoding="utf-8")
    page = Page(source)
    assert page.open == []
    assert not [tag for tag, _ in page.tags if tag in ("img", "base")]
    assert len([1 for attrs, _ in page.scripts if attrs.get("type") is None]) == 1
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text
    assert "{{style}}" in page.text
    assert not set("\x00\x1b\r\u202e\u2028") & set(source)
    for attrs, text in page.scripts:
        if attrs.get("type") == "application/json":
            assert not set("<>&") & set(text)
            json.loads(text)


def test_hostile_folder_names_are_shown_escaped(tmp_path: Path) -> None:
    make_run(tmp_path / "a<b>&")
    make_run(tmp_path / "b")
    (tmp_path / "a<b>&" / "tokens.jsonl").write_text("{")
    source = build(tmp_path).read_text(encoding="utf-8")
    assert "<b>&" not in source
    assert "a&lt;b&gt;&amp;/tokens.jsonl line 1" in source


def test_credentials_in_the_settings_are_hidden(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    summary["config"] = {"critic": {"api_key": "sk-123"}, "HF_TOKEN": "hf_456", "max_token": 7}
    (run / "summary.json").write_text(json.dumps(summary))
    source = build(run).read_text(encoding="utf-8")
    assert "sk-123" not in source
    assert "hf_456" not in source
    assert "(hidden)" in source
    assert "&quot;max_token&quot;: 7" in source


def test_a_local_model_folder_is_named_by_its_last_part(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    summary["model"] = "/home/someone/models/tiny/"
    (run / "summary.json").write_text(json.dumps(summary))
    source = build(run).read_text(encoding="utf-8")
    assert "tiny was trained" in source
    assert "/home/someone" not in source
