"""Which runs a suite makes, and what happens when there is no time."""

import pytest
import torch

from sdkernels.bench import peers, results, suite
from sdkernels.bench.cases import CASES
from sdkernels.bench.problem import Problem, float64_answer
from sdkernels.bench.shapes import SHAPES

CPU = torch.device("cpu")


@pytest.mark.parametrize("entries", [suite.cpu_entries(), suite.gpu_entries()], ids=["cpu", "gpu"])
def test_the_union_covers_what_was_asked_for(entries):
    assert {entry.case for entry in entries} == set(CASES)
    assert any(entry.frozen for entry in entries)
    assert any(entry.own_teacher for entry in entries)
    assert len(entries) == len(set(entries))
    for entry in entries:
        entry.setting(CPU)
        assert peers.select(None if entry.peers is None else list(entry.peers), entry.case)


def test_gpus_see_every_model_and_lengths_from_1k_to_128k():
    entries = suite.gpu_entries()
    assert {entry.shape for entry in entries} == set(SHAPES) - {"tiny", "small"}
    lengths = {entry.tokens for entry in entries if entry.shape == "qwen3-8b"}
    assert {1024, 131072} <= lengths
    assert entries[0].setting(torch.device("cuda")).dtype == torch.bfloat16


def test_the_cpu_suite_leaves_time_for_checks_within_ten_minutes():
    entries = suite.cpu_entries()
    assert sum(entry.seconds for entry in entries) <= 300
    assert entries[0].setting(CPU).dtype == torch.float32
    # A limit must not leave out whole cases: all of them come before the first long run.
    short = [entry.case for entry in entries[: len(CASES)]]
    assert sorted(short) == sorted(CASES)


def test_what_does_not_fit_is_listed(tmp_path):
    path = tmp_path / "cpu.json"
    entries = [
        suite.Entry("nll", "tiny", 16, seconds=0.01, peers=("eager",)),
        suite.Entry("jsd", "tiny", 16, seconds=1000.0, peers=("eager",)),
        suite.Entry("grpo", "tiny", 16, seconds=0.01, peers=("eager",)),
    ]
    said = []
    suite.run_jobs(suite.jobs(entries, CPU), "c", path, limit_seconds=100, say=said.append)
    found = results.read(path)
    assert [run["case"] for run in found["runs"]] == ["nll", "grpo"]
    assert [entry["case"] for entry in found["left_out"]] == ["jsd"]
    assert "100 s were given" in found["left_out"][0]["reason"]
    assert len(said) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_suite_leaves_what_was_measured(monkeypatch, tmp_path, capsys, error):
    path = tmp_path / "cpu.json"
    entries = [suite.Entry(case, "tiny", 16, 0.01, peers=("eager",)) for case in ("nll", "grpo")]
    real = suite.run

    def run(setting, *more):
        if setting.case.name == "grpo":
            assert [made["case"] for made in results.read(path)["runs"]] == ["nll"]
            raise error
        return real(setting, *more)

    monkeypatch.setattr(suite, "run", run)
    with pytest.raises(error):
        suite.run_jobs(suite.jobs(entries, CPU), "c", path)
    found = results.read(path)
    assert [made["case"] for made in found["runs"]] == ["nll"]
    assert [entry["case"] for entry in found["left_out"]] == ["grpo"]
    text = capsys.readouterr().out
    assert "| floor: 3 bare matrix products" in text
    assert "left out: grpo, tiny, T = 16: not reached" in text
    assert f"written to {path}" in text


def test_what_cannot_fit_into_memory_is_left_out(monkeypatch, tmp_path):
    entries = [
        suite.Entry("jsd", shape, 16, 0.01, peers=("eager",)) for shape in ("qwen3-8b", "tiny")
    ]
    monkeypatch.setattr(suite, "available_bytes", lambda device: 16 << 30)
    made = []

    def run(setting, *more):
        made.append(setting.shape.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "run", run)
    path = tmp_path / "cpu.json"
    with pytest.raises(KeyboardInterrupt):
        suite.run_jobs(suite.jobs(entries, CPU), "c", path)
    assert made == ["tiny"]
    reasons = {entry["shape"]: entry["reason"] for entry in results.read(path)["left_out"]}
    assert reasons["qwen3-8b"] == "needs about 23 GiB, 16 GiB are free"
    # The example of the README.
    assert suite.too_large(suite.Entry("jsd", "qwen3-0.6b", 1024, 1).setting(CPU)) is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "failed: MemoryError"),
        (RuntimeError("can't allocate\nmemory"), "failed: RuntimeError: can't allocate memory"),
    ],
)
def test_a_run_that_fails_outside_a_peer_does_not_end_the_suite(
    monkeypatch, tmp_path, error, reason
):
    path = tmp_path / "cpu.json"
    cases = ("nll", "jsd", "grpo")
    entries = [suite.Entry(case, "tiny", 16, 0.01, peers=("eager",)) for case in cases]
    real = suite.run

    def run(setting, *more):
        if setting.case.name == "jsd":
            raise error
        return real(setting, *more)

    monkeypatch.setattr(suite, "run", run)
    record = suite.run_jobs(suite.jobs(entries, CPU), "c", path)
    found = results.read(path)
    assert [made["case"] for made in found["runs"]] == ["nll", "grpo"]
    [left] = found["left_out"]
    assert (left["case"], left["reason"]) == ("jsd", reason)
    assert record.failures == [f"jsd, tiny, T = 16: {reason.removeprefix('failed: ')}"]


def test_the_memory_of_a_gpu_counts_without_what_earlier_runs_left_to_the_allocator(
    monkeypatch, tmp_path
):
    kept = [16 << 30]
    monkeypatch.setattr(torch.cuda, "empty_cache", kept.clear)
    monkeypatch.setattr(suite, "available_bytes", lambda device: (24 << 30) - sum(kept))
    made = []
    monkeypatch.setattr(suite, "run", lambda *given: made.append(given) or 1 / 0)
    monkeypatch.setattr("sdkernels.bench.record.machine", lambda device: {"versions": {}})
    gpu = torch.device("cuda")
    entries = [
        suite.Entry("jsd", "qwen3-8b", tokens, 0.01, peers=("eager",)) for tokens in (8192, 1 << 20)
    ]
    record = suite.run_jobs(suite.jobs(entries, gpu), "c")
    assert len(made) == 1
    left = [entry["reason"] for entry in record.result["left_out"]]
    assert left == ["failed: ZeroDivisionError: division by zero", left[1]]
    assert left[1] == "needs about 37 GiB, 24 GiB are free"


@pytest.mark.parametrize("case", ["nll", "logprob-entropy-forward"])
def test_tokens_count_towards_the_memory(monkeypatch, case):
    monkeypatch.setattr(suite, "available_bytes", lambda device: 64 << 30)
    entry = suite.Entry(case, "small", 100_000_000, 1, peers=("eager",))
    assert "64 GiB are free" in suite.too_large(entry.setting(CPU))


@pytest.mark.parametrize(
    ("frozen", "own_teacher", "case"),
    [(False, False, "jsd"), (True, False, "jsd"), (False, True, "jsd"), (False, False, "nll")],
)
@pytest.mark.parametrize(("tokens", "shape"), [(4096, "256x16"), (512, "128x4096")])
def test_what_it_counts_is_no_more_than_what_a_run_holds(
    monkeypatch, tokens, shape, frozen, own_teacher, case
):
    entry = suite.Entry(case, shape, tokens, 1, frozen=frozen, own_teacher=own_teacher)
    setting = entry.setting(CPU)
    problem = Problem.make(setting)
    monkeypatch.setattr(suite, "available_bytes", lambda device: problem.nbytes)
    assert suite.too_large(setting) is not None
    checked = problem.first(suite.CHECK_TOKENS["cpu"])
    answer = float64_answer(checked)
    heads = 8 * setting.shape.vocab * setting.shape.hidden
    held = sum(gradient.nbytes for gradient in answer.gradients)
    held += heads * (1 if own_teacher or case == "nll" else 2) + (0 if frozen else heads)
    most = problem.nbytes + max(held, problem.gradient_bytes)
    monkeypatch.setattr(suite, "available_bytes", lambda device: most)
    assert suite.too_large(setting) is None
    monkeypatch.setattr(suite, "available_bytes", lambda device: most - 1)
    assert suite.too_large(setting) is not None
