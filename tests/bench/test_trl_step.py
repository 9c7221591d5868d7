import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import trl_step


@pytest.mark.parametrize("name", trl_step.TRAINERS)
def test_before_after_and_the_layer_are_measured(name: str) -> None:
    flags = argparse.Namespace(tokens=16, hidden=16, vocab=64, rounds=1, threads=1)
    found = trl_step.measure(name, flags)
    assert found.keys() == {"before", "after", "layer"}
    for side in found.values():
        assert side["seconds"]["median"] > 0


def test_the_file_has_the_threads_of_the_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(name: str, flags: argparse.Namespace) -> dict[str, Any]:
        took = {"before": 3.0, "after": 2.0, "layer": 1.0}
        return {
            side: {"seconds": {"median": seconds}, "peak_extra_bytes": None}
            for side, seconds in took.items()
        }

    monkeypatch.setattr(trl_step, "in_own_process", measured)
    before = torch.get_num_threads()
    out = tmp_path / "trl.json"
    try:
        trl_step.main(["--threads", str(before + 1), "--out", str(out)])
    finally:
        torch.set_num_threads(before)
    assert json.loads(out.read_text())["machine"]["threads"] == before + 1
