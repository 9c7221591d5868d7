"""Plots are made from the file alone, and from as much of it as there is."""

import pytest

from sdkernels.bench import peers, plots, results, runner
from sdkernels.bench.machine import machine
from sdkernels.bench.peer import Peer

pytest.importorskip("matplotlib")


@pytest.fixture
def result(setting, eager, scaled, quick):
    absent = Peer("absent", "Absent", eager.calls, lambda setting: "not today")
    runs = [
        runner.run(setting(tokens=tokens, **more), [eager, scaled("Off", value=2.0), absent], quick)
        for tokens, more in ((32, {}), (16, {}), (16, {"frozen": True}))
    ]
    return results.assemble("command", machine(setting().device), runs)


def test_three_plots(result, tmp_path):
    paths = plots.draw(result, tmp_path / "plots")
    assert [path.name for path in paths] == ["cpu-ratio.png", "cpu-time.png", "cpu-memory.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_lines_over_tokens_hold_the_headline_setting_by_length(result):
    assert [run["shape"]["tokens"] for run in plots.sweep(result)] == [16, 32]
    assert all(run["head"] == "trainable" for run in plots.sweep(result))


def test_the_headline_is_the_largest_run_over_the_most_peers(result, setting, eager, quick):
    longer = runner.run(setting(tokens=64), [eager], quick)
    other = runner.run(setting("jsd", tokens=64), [eager] * 4, quick)
    result["runs"] = [other, longer, *reversed(result["runs"])]
    assert plots.headline(result)["shape"]["tokens"] == 32
    assert plots.headline(result)["head"] == "trainable"
    result["runs"] = [other]
    assert plots.headline(result) is other


def test_one_length_has_no_lines(result, tmp_path):
    result["runs"] = result["runs"][:1]
    assert [path.name for path in plots.draw(result, tmp_path)] == ["cpu-ratio.png"]


def test_a_file_without_memory_is_drawn(result, tmp_path):
    for run in result["runs"]:
        for row in run["rows"]:
            row["peak_extra_bytes"] = None
    assert len(plots.draw(result, tmp_path)) == 2


def test_no_two_lines_look_alike_and_sdkernels_has_its_colour_alone():
    names = [name for name, peer in peers.load().items() if "kl-teacher-student" in peer.calls]
    looks = plots.styles(names)
    assert sorted(looks) == sorted(names)
    assert len(set(looks.values())) == len(names)
    own = {looks[name][0] for name in names if name.startswith("sdkernels")}
    assert not own & {look[0] for name, look in looks.items() if not name.startswith("sdkernels")}
