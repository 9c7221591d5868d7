"""Every peer that can run on this machine agrees with the float64 answer, in every variant."""

import pytest

from sdkernels.bench import peers
from sdkernels.bench.cases import CASES
from sdkernels.bench.check import bounds_of
from sdkernels.bench.measure import available_bytes
from sdkernels.bench.problem import Problem, float64_answer
from sdkernels.bench.runner import checked_row

# Compilation takes tens of seconds; `make bench` compares these before it times them.
LIGHT = {name: peer for name, peer in peers.load().items() if "compiled" not in name}


def pairs():
    return [(name, case) for name, peer in LIGHT.items() for case in peer.calls]


def compare(peer, setting):
    problem = Problem.make(setting)
    answer = float64_answer(problem)
    return checked_row(peer, problem, answer, bounds_of(problem, answer), setting)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("name", "case"), pairs())
def test_peers_agree_or_say_why_they_cannot_run(setting, name, case):
    row = compare(LIGHT[name], setting(case))
    assert row["status"] != "wrong", row
    if row["status"] == "not run":
        # Nothing that fails while it runs: only what was known before.
        assert LIGHT[name].why_not(setting(case), available_bytes(setting().device)), row["reason"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", [{"frozen": True}, {"own_teacher": True}], ids=str)
@pytest.mark.parametrize("name", ["sdkernels", "sdkernels-per-token", "eager"])
def test_frozen_heads_and_own_teachers(setting, name, case, variant):
    if case in LIGHT[name].calls:
        row = compare(LIGHT[name], setting(case, **variant))
        assert row["status"] == "ok", row


def test_every_case_has_sdkernels_and_two_others_everywhere():
    for case in CASES:
        names = {peer.name for peer in peers.select(None, case)}
        assert {"sdkernels", "eager", "compiled-chunks"} <= names


def test_the_peers_of_the_issue_are_all_there():
    titles = " ".join(peer.title for peer in peers.load().values())
    for name in (
        "eager",
        "torch.compile",
        "F.linear_cross_entropy",
        "FusedLinearJSD",
        "FusedLinearKLDiv",
        "FusedLinearCrossEntropy, constant 1",
        "FusedLinearCrossEntropy, constant 16",
        "chunked JSD, 1024 rows, compiled",
        "chunked JSD, 4096 rows, compiled",
        "FusedLinearGRPO",
        "chunked_divergence",
        "chunked_logprob",
        "logprob_entropy",
        "SDPOTrainer",
        "GKDTrainer",
        "FLA",
        "verl",
        "cut-cross-entropy",
        "unsloth",
        "QuACK",
    ):
        assert name in titles


def test_names_pick_peers_also_without_the_case_and_suggest_the_nearest():
    assert [peer.name for peer in peers.select(["quack", "eager"], "jsd")] == ["quack", "eager"]
    with pytest.raises(ValueError, match="did you mean 'liger-jsd'"):
        peers.select(["liger_jds"], "jsd")


def test_a_peer_named_twice_is_refused(setting):
    """Both rows would take their times from one list."""
    with pytest.raises(ValueError, match="peer 'eager' comes 2 times"):
        peers.select(["eager", "sdkernels", "Eager"], "jsd")


@pytest.mark.parametrize("case", CASES)
def test_peers_on_gpus_say_so_here(setting, case):
    for peer in peers.select(None, case):
        if peer.name.startswith(("liger-ce", "liger-jsd", "liger-kl", "fla", "verl", "quack")):
            assert peer.why_not(setting(case), None) == "runs on GPUs only"
