"""The harness: who is compared with what, what is timed, what is only reported."""

import itertools

import pytest
import torch

from sdkernels.bench import results, runner, tables
from sdkernels.bench.peer import Peer, importable
from sdkernels.bench.problem import Problem, float64_answer


def rows(setting, peers, quick):
    found = runner.run(setting, peers, quick)
    return found, {row["peer"]: row for row in found["rows"]}


def peer(name, call, case="kl-teacher-student", **more):
    return Peer(name, name, {case: call}, **more)


@pytest.mark.parametrize(
    ("value", "gradient"), [(1.002, 1.0), (1.0, 1.02), (1.0, 0.0), (float("nan"), 1.0), (0.0, 1.0)]
)
def test_a_wrong_peer_is_reported_as_wrong_with_its_error_and_not_timed(
    setting, eager, scaled, quick, value, gradient
):
    _, found = rows(setting(), [eager, scaled("off", value=value, gradient=gradient)], quick)
    assert found["eager"]["status"] == "ok"
    assert found["off"]["status"] == "wrong"
    assert "seconds" not in found["off"]
    assert "ratio_to_floor" not in found["off"]
    errors = found["off"]["value_error"], found["off"]["gradient_error"]
    expected = abs(value - 1.0), abs(gradient - 1.0)
    assert errors == pytest.approx(expected, rel=1e-2, abs=1e-5, nan_ok=True)


def test_rounding_is_not_called_wrong(setting, scaled, quick):
    _, found = rows(setting(), [scaled("near", value=1 + 1e-4, gradient=1 - 1e-3)], quick)
    assert found["near"]["status"] == "ok"


@pytest.mark.parametrize("which", [0, 1])
def test_nan_in_one_gradient_is_wrong_whatever_the_other(setting, eager, quick, which):
    def call(problem):
        loss = eager.calls["kl-teacher-student"](problem)
        loss.backward()
        problem.leaves[which].grad[3, 2] = float("nan")
        return loss.detach()

    _, found = rows(setting(), [peer("nan", call)], quick)
    assert found["nan"]["status"] == "wrong"


@pytest.mark.parametrize(("missing", "name"), [(0, "hidden"), (1, "weight")])
def test_a_missing_gradient_is_wrong(setting, eager, quick, missing, name):
    def call(problem):
        loss = eager.calls["kl-teacher-student"](problem)
        loss.backward()
        problem.leaves[missing].grad = None
        return loss.detach()

    run, found = rows(setting(), [peer("none", call)], quick)
    assert found["none"]["status"] == "wrong"
    assert found["none"]["reason"] == f"no gradient for {name}"
    results.check(results.assemble("test", {}, [run]))
    assert f"WRONG: no gradient for {name}" in tables.table(run)


def test_a_peer_without_its_package_is_listed_with_the_reason(setting, eager, quick):
    absent = peer("absent", None, unavailable=importable("no_such_package.ops", "no-such"))
    _, found = rows(setting(), [eager, absent], quick)
    assert found["absent"]["status"] == "not run"
    assert found["absent"]["reason"] == "no-such is not installed"


def test_an_import_error_inside_the_call_is_a_reason(setting, eager, quick):
    def call(problem):
        raise ImportError("libfoo.so is missing")

    _, found = rows(setting(), [peer("broken", call), eager], quick)
    assert found["broken"]["status"] == "not run"
    assert found["broken"]["reason"] == "cannot be imported: libfoo.so is missing"
    assert found["eager"]["status"] == "ok"


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
def test_a_peer_that_fails_at_any_point_leaves_the_others_alone(setting, eager, quick, fails_at):
    calls = []

    def call(problem):
        calls.append(None)
        if len(calls) == fails_at:
            raise RuntimeError("kernel launch failed")
        return eager.calls["kl-teacher-student"](problem)

    run, found = rows(setting(), [peer("flaky", call), eager], quick)
    assert found["flaky"]["status"] == "not run"
    assert found["flaky"]["reason"] == "RuntimeError: kernel launch failed"
    assert "seconds" not in found["flaky"]
    assert found["eager"]["seconds"]["repeats"] == 3
    results.check(results.assemble("test", {}, [run]))


def test_a_case_that_the_peer_lacks_is_a_reason(setting, quick):
    _, found = rows(setting("nll"), [peer("kl-only", None)], quick)
    assert (
        "it has no negative log-likelihood; it has kl-teacher-student"
        in (found["kl-only"]["reason"])
    )


def test_whole_logits_that_do_not_fit_are_not_tried(setting, eager, monkeypatch, quick):
    monkeypatch.setattr(runner, "available_bytes", lambda device: 100_000)
    _, found = rows(setting(tokens=64), [eager], quick)
    assert "whole logits take about" in found["eager"]["reason"]


def test_ratios_are_those_of_the_same_run(setting, eager, quick):
    run, found = rows(setting(), [eager], quick)
    ratio = found["eager"]["seconds"]["median"] / run["floor"]["seconds"]["median"]
    assert found["eager"]["ratio_to_floor"] == ratio
    assert run["floor"]["flops_per_second"] == pytest.approx(
        2 * 4 * 16 * 40 * 300 / run["floor"]["seconds"]["median"]
    )


def test_each_round_has_everybody_once_in_an_order_of_its_own(setting, monkeypatch):
    order = []

    def fake(name):
        def call(problem):
            order.append(name)
            return loss(problem)

        return call

    def loss(problem):
        return (problem.hidden_TD.sum() + problem.weight_VD.sum()) * 0.0

    monkeypatch.setattr(runner, "errors_of", lambda *_: (0.0, 0.0))
    names = ["a", "b", "c"]
    peers = [peer(name, fake(name)) for name in names]
    runner.run(setting(), peers, runner.Effort(repeats=6, seconds=100))
    assert order[:6] == names * 2  # comparison, memory
    rounds = [tuple(order[lo : lo + 3]) for lo in range(6, len(order), 3)]
    assert len(rounds) == 6
    assert all(sorted(each) == names for each in rounds)
    # With one order that starts elsewhere each time there would be three, all of one cycle.
    after = {pair for each in rounds for pair in itertools.pairwise(each)}
    assert len(after) > 4


def test_calls_take_turns_with_the_copies_of_the_inputs(setting, eager, monkeypatch):
    seen = []

    def call(problem):
        seen.append(problem.hidden_TD.data_ptr())
        return eager.calls["kl-teacher-student"](problem)

    monkeypatch.setattr(runner, "cache_bytes", lambda _: 1 << 19)
    peers = [peer("a", call), peer("b", call)]
    run = runner.run(setting(), peers, runner.Effort(repeats=3, seconds=100))
    assert run["floor"]["input_copies"] >= 9
    timed = seen[4:]
    assert len(timed) == len(set(timed)) == 6


def test_a_peer_that_changes_its_inputs_is_wrong_and_alone(setting, eager, quick):
    def call(problem):
        loss = eager.calls["kl-teacher-student"](problem)
        loss.backward()
        with torch.no_grad():
            problem.weight_VD.mul_(1.05)
        return loss.detach()

    _, found = rows(setting(), [peer("changes", call), eager], quick)
    assert found["changes"]["status"] == "wrong"
    assert "changes its inputs" in found["changes"]["reason"]
    assert found["eager"]["status"] == "ok"


def test_memory_that_cannot_be_had_is_a_reason_for_one_peer(setting, eager, quick, monkeypatch):
    def back(size, device):
        if size > 10**6:
            raise RuntimeError("cannot allocate")

    sizes = iter([10**9, 0])
    monkeypatch.setattr(runner, "back_memory", back)
    monkeypatch.setattr(runner, "peak_extra_bytes", lambda run, _: next(sizes))
    _, found = rows(setting(), [peer("hungry", eager.calls["kl-teacher-student"]), eager], quick)
    assert "cannot allocate" in found["hungry"]["reason"]
    assert found["eager"]["status"] == "ok"


def test_a_run_says_how_long_it_took_and_who_else_was_there(setting, eager, quick):
    run, _ = rows(setting(), [eager], quick)
    assert 0 < run["seconds"] < 60
    # The system counts in hundredths of a second: of a run this short it can only be no less.
    assert run["others_cpu_share"] is None or run["others_cpu_share"] >= 0


def test_repeats_end_with_the_time(setting, eager):
    short = runner.run(setting(), [eager], runner.Effort(repeats=50, seconds=0.0))
    assert short["floor"]["seconds"]["repeats"] == runner.LEAST_REPEATS
    full = runner.run(setting(), [eager], runner.Effort(repeats=7, seconds=100.0))
    assert full["floor"]["seconds"]["repeats"] == 7


def test_long_inputs_are_compared_on_their_first_tokens(setting, eager, monkeypatch, quick):
    monkeypatch.setattr(runner, "CHECK_TOKENS", {"cpu": 8})
    seen = []

    def call(problem):
        seen.append(problem.setting.tokens)
        return eager.calls["kl-teacher-student"](problem)

    run, _ = rows(setting(), [peer("seen", call)], quick)
    assert run["checked_tokens"] == 8
    # Compared, warmed up at full size (what compiles for it is not the call's memory), measured.
    assert seen == [8, 16, 16, 16, 16, 16]


def test_memory_is_that_of_a_call_of_its_own(setting, eager, quick):
    def call(problem):
        torch.ones(8 << 20)  # 32 MiB, freed at once
        return eager.calls["kl-teacher-student"](problem)

    _, found = rows(setting(), [peer("large", call), eager], quick)
    assert found["large"]["seconds"]["repeats"] == 3
    if found["eager"]["peak_extra_bytes"] is None:
        pytest.skip("this system does not reset its memory peak")
    # Other threads of the process may take some megabytes meanwhile.
    assert 31 << 20 <= found["large"]["peak_extra_bytes"] <= 56 << 20
    assert found["eager"]["peak_extra_bytes"] <= 24 << 20


def test_a_timed_call_finds_the_memory_that_it_takes(setting, eager, quick, monkeypatch):
    events = []

    def call(problem):
        events.append("call")
        return eager.calls["kl-teacher-student"](problem)

    def back(size, device):
        assert device == torch.device("cpu")
        events.append(size)

    def peak(run, device):
        run()
        return 1000

    monkeypatch.setattr(runner, "back_memory", back)
    monkeypatch.setattr(runner, "peak_extra_bytes", peak)
    rows(setting(), [peer("seen", call)], quick)
    size = max(1000, 4 * (16 * 40 + 300 * 40))  # what the gradients take is part of it
    assert events == ["call", "call"] + [size, "call"] * 3


def test_forward_only_compares_both_outputs(setting, eager, quick):
    right = eager.calls["logprob-entropy-forward"]

    def swapped(problem):
        logp_T, entropy_T = right(problem)
        return entropy_T, logp_T

    case = "logprob-entropy-forward"
    _, found = rows(setting(case), [eager, peer("swapped", swapped, case)], quick)
    assert found["eager"]["status"] == "ok"
    assert found["eager"]["gradient_error"] is None
    assert found["swapped"]["status"] == "wrong"


@pytest.mark.parametrize("graph", [True, False])
def test_a_result_of_another_shape_is_wrong(setting, eager, quick, graph):
    def call(problem):
        loss = eager.calls["kl-teacher-student"](problem).expand(16)
        return loss if graph else loss.detach()

    run, found = rows(setting(), [peer("vector", call)], quick)
    assert found["vector"]["status"] == "wrong"
    assert found["vector"]["reason"] == "result of shape [16], not []"
    assert "seconds" not in found["vector"]
    results.check(results.assemble("test", {}, [run]))
    assert "WRONG: result of shape" in tables.table(run)


def test_outputs_of_another_shape_are_wrong_not_broadcast(setting, eager, quick):
    case = "logprob-entropy-forward"

    def column(problem):
        return tuple(one.unsqueeze(-1) for one in eager.calls[case](problem))

    _, found = rows(setting(case), [peer("column", column, case)], quick)
    assert found["column"]["status"] == "wrong"
    assert "shape [[16, 1], [16, 1]], not [[16], [16]]" in found["column"]["reason"]


def test_a_shape_that_goes_wrong_while_it_is_timed_is_wrong_too(setting, eager, quick):
    calls = []

    def call(problem):
        calls.append(None)
        loss = eager.calls["kl-teacher-student"](problem)
        return loss if len(calls) < 3 else loss.expand(2)

    _, found = rows(setting(), [peer("flaky", call), eager], quick)
    assert found["flaky"]["status"] == "wrong"
    assert found["flaky"]["value_error"] < 1e-5
    assert found["eager"]["seconds"]["repeats"] == 3


def test_frozen_heads_are_compared_by_the_gradient_of_the_hidden_states(setting, eager, quick):
    problem = Problem.make(setting(frozen=True))
    assert len(float64_answer(problem).gradients) == 1
    run, found = rows(setting(frozen=True), [eager], quick)
    assert run["floor"]["products"] == 3
    assert found["eager"]["gradient_error"] < 1e-5


def test_a_run_starts_with_an_empty_cache_of_the_compiler(setting, eager, quick, monkeypatch):
    """Else dynamo's limit of recompilations would leave a peer of a later run uncompiled."""
    resets = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(True))
    rows(setting(), [eager], quick)
    assert resets == [True]
