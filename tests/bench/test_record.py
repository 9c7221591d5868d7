"""What a record puts into its file."""

import json

import pytest
import torch

from sdkernels.bench import files, results, runner, tables
from sdkernels.bench.record import Record


def no_constant(name):
    raise ValueError(f"{name} is no JSON")


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_an_error_that_is_no_number_is_null_and_the_reason_says_so(
    setting, scaled, quick, tmp_path, number
):
    path = tmp_path / "cpu.json"
    peers = [scaled("off", value=float(number)), scaled("steep", gradient=float(number))]
    record = Record("c", torch.device("cpu"), [setting()], path)
    record.add(runner.run(setting(), peers, quick))
    json.loads(path.read_text(), parse_constant=no_constant)
    value, gradient = results.read(path)["runs"][0]["rows"]
    assert (value["status"], value["value_error"]) == ("wrong", None)
    assert value["reason"].endswith(f"in gradient: value error is {number}")
    assert (gradient["status"], gradient["gradient_error"]) == ("wrong", None)
    assert gradient["reason"].endswith(f"in gradient: gradient error is {number}")
    assert f"value error is {number} |" in tables.text(record.result)


def test_other_numbers_that_json_lacks_are_null_and_named(tmp_path):
    path = tmp_path / "x.json"
    files.write(path, {"a": [float("inf"), 1.0], "b": (float("nan"), "c")})
    assert json.loads(path.read_text(), parse_constant=no_constant) == {
        "a": [None, 1.0],
        "b": [None, "c"],
        "not_finite": {"a": {"0": "Infinity"}, "b": {"0": "NaN"}},
    }
