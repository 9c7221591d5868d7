"""The pages say what the results file says, and name it."""

import json
from pathlib import Path

import pytest
import torch

from sdkernels.bench import plots, publish, results, runner, step_tables
from sdkernels.bench.machine import machine

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", publish.PAGES)
def test_published_tables_are_those_of_their_file(page):
    for hardware, (file, body) in publish.published(page).items():
        if file == "none":
            assert "| floor" not in body
            continue
        result = results.read(ROOT / file)
        assert result["machine"]["hardware"] == hardware
        assert body == publish.PAGES[page](result, file)


def test_both_pages_name_the_same_files():
    one, other = (
        {hardware: file for hardware, (file, _) in publish.published(page).items()}
        for page in publish.PAGES
    )
    assert one == other


def test_every_plot_of_the_page_is_there():
    for file, body in publish.published("README.md").values():
        if file != "none":
            names = plots.made(results.read(ROOT / file))
            assert body.count("![") == len(names)
            assert all((ROOT / "bench" / "plots" / name).is_file() for name in names)


def test_recorded_results_can_be_read():
    for path in (ROOT / "bench" / "results").glob("*.json"):
        # The others are of bench/gpu.py and of whole steps.
        if not path.name.startswith(("gpu-", *(f"{kind}-" for kind in step_tables.TABLES))):
            assert results.read(path)["runs"]


@pytest.mark.parametrize("kind", step_tables.TABLES)
def test_published_steps_are_those_of_their_file(kind):
    file, body = publish.published_step(kind)
    if file == "none":
        assert "|" not in body
        return
    assert body == step_tables.block(json.loads((ROOT / file).read_text()), file)


@pytest.fixture
def repository(tmp_path, monkeypatch, setting, eager, quick):
    """A copy of the pages, and a results file."""
    (tmp_path / "bench").mkdir()
    for page in publish.PAGES:
        (tmp_path / page).write_text((ROOT / page).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    monkeypatch.setattr(publish, "PLOTS", tmp_path / "bench" / "plots")
    run = runner.run(setting(), [eager], quick)
    file = tmp_path / "bench" / "results" / "cpu-2026-01-01.json"
    results.write(file, results.assemble("c", machine(setting().device), [run]))
    return tmp_path, file


def test_publishing_replaces_the_block_and_nothing_else(repository):
    pytest.importorskip("matplotlib")
    root, file = repository
    before = {page: (root / page).read_text(encoding="utf-8") for page in publish.PAGES}
    publish.publish(file)
    for page, render in publish.PAGES.items():
        found, body = publish.published(page)["cpu"]
        assert found == "bench/results/cpu-2026-01-01.json"
        assert body == render(results.read(file), found)
        after = (root / page).read_text(encoding="utf-8")
        for text in (before[page], after):
            assert text.count(publish.END) == 2
        assert before[page].split("<!-- bench: cpu")[0] == after.split("<!-- bench: cpu")[0]
        assert before[page].split(publish.END)[1:] == after.split(publish.END)[1:]
    assert (root / "bench" / "plots" / "cpu-ratio.png").exists()
    once = (root / "README.md").read_text(encoding="utf-8")
    publish.publish(file)
    assert (root / "README.md").read_text(encoding="utf-8") == once


def test_each_hardware_keeps_a_block_of_its_own(repository):
    pytest.importorskip("matplotlib")
    root, file = repository
    publish.publish(file)
    expected = {"cpu": "bench/results/cpu-2026-01-01.json"}
    for name in ("nvidia-h200", "amd-mi300x"):
        result = results.read(file)
        result["machine"]["hardware"] = name
        results.write(file.with_name(f"{name}.json"), result)
        publish.publish(file.with_name(f"{name}.json"))
        expected[name] = f"bench/results/{name}.json"
    for page, render in publish.PAGES.items():
        blocks = publish.published(page)
        assert {hardware: found for hardware, (found, _) in blocks.items()} == expected
        for found, body in blocks.values():
            assert body == render(results.read(root / found), found)
    for hardware, (_, body) in publish.published("README.md").items():
        assert f"![ratio to the floor, by peer](bench/plots/{hardware}-ratio.png)" in body
        assert (root / "bench" / "plots" / f"{hardware}-ratio.png").exists()
    text = (root / "README.md").read_text(encoding="utf-8")
    assert "plots/" not in publish._BLOCK.sub("", text)
    assert "there are none yet" not in text


def test_what_cannot_be_published_is_one_line(repository, tmp_path_factory, capsys):
    root, file = repository
    outside = tmp_path_factory.mktemp("outside") / "cpu.json"
    outside.write_text(file.read_text())
    broken = root / "broken.json"
    broken.write_text("")
    empty = root / "empty.json"
    results.write(empty, results.assemble("c", machine(torch.device("cpu")), []))
    for path, part in (
        (outside, "lies outside"),
        (root / "missing.json", "No such file"),
        (broken, "is not JSON"),
        (empty, "has no run"),
    ):
        assert publish.main([str(path)]) == 2
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1
        assert part in err
        assert path.name in err


def test_a_page_without_its_block_is_an_error(repository):
    pytest.importorskip("matplotlib")
    root, file = repository
    (root / "README.md").write_text("no block", encoding="utf-8")
    with pytest.raises(ValueError, match=r"README\.md has no block"):
        publish.publish(file)


def test_the_file_of_a_step_goes_into_its_own_block(repository):
    root, _ = repository
    before = (root / publish.STEPS_PAGE).read_text(encoding="utf-8")
    report = {
        "kind": "methods",
        "command": "c",
        "machine": machine(torch.device("cpu")),
        "settings": {"steps": 3},
        "rows": [
            {"name": "recipe a", "seconds": 1.5, "of_sdpo": 1.04, "sdpo_seconds": 1.4},
            {"name": "context b", "not_run": "it generates text"},
        ],
    }
    file = root / "bench" / "results" / "methods-cpu-2026-01-01.json"
    file.write_text(json.dumps(report))
    publish.main([str(file)])
    name, body = publish.published_step("methods")
    assert name == "bench/results/methods-cpu-2026-01-01.json"
    assert "| recipe a | 1.50 | 104% |\n| context b | not run: it generates text | |\n" in body
    after = (root / publish.STEPS_PAGE).read_text(encoding="utf-8")
    assert after.split("<!-- methods: ")[0] == before.split("<!-- methods: ")[0]
    assert after.split("<!-- methods: end")[1] == before.split("<!-- methods: end")[1]
