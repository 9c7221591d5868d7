"""Mistakes that peers make are called wrong, in every dtype, and honest rounding is not."""

import pytest
import torch

from sdkernels.bench import formulas, peers
from sdkernels.bench.check import bounds_of
from sdkernels.bench.peer import Peer
from sdkernels.bench.peers.eager import log_softmaxes
from sdkernels.bench.problem import Problem, float64_answer
from sdkernels.bench.runner import checked_row

DTYPES = [torch.float32, torch.bfloat16]
KNOWN = peers.load()


def row_of(setting, call):
    """What the check says about `call`."""
    problem = Problem.make(setting)
    answer = float64_answer(problem)
    one = Peer("one", "one", {setting.case.name: call})
    return checked_row(one, problem, answer, bounds_of(problem, answer), setting)


def divergence_scaled(by):
    """DASD with the right value, and the gradient of its divergence multiplied by `by`."""

    def call(problem):
        student_TV, teacher_TV = log_softmaxes(problem)
        surrogate = formulas.grpo(student_TV, None, problem.tokens)
        divergence = formulas.dasd(student_TV, teacher_TV, problem.tokens) - surrogate
        return (surrogate + by * divergence + (1 - by) * divergence.detach()).sum()

    return call


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ["40x300", "128x8192"])
@pytest.mark.parametrize(("by", "status"), [(1, "ok"), (0, "wrong"), (-1, "wrong")])
def test_dasd_needs_the_gradient_of_its_divergence(setting, dtype, shape, by, status):
    row = row_of(setting("dasd", 64, shape, dtype=dtype), divergence_scaled(by))
    assert row["status"] == status, row


@pytest.mark.parametrize("shape", ["40x300", "128x8192"])
def test_both_halves_of_dasd_weigh_about_the_same_in_its_gradient(setting, shape):
    problem = Problem.make(setting("dasd", 64, shape))
    norms = []
    for left in ("adv", "divergence"):
        problem.clear()
        student_TV, teacher_TV = log_softmaxes(problem)
        surrogate = formulas.grpo(student_TV, None, problem.tokens)
        whole = formulas.dasd(student_TV, teacher_TV, problem.tokens)
        (surrogate if left == "adv" else whole - surrogate).sum().backward()
        norms.append(problem.hidden_TD.grad.norm().item())
    assert 0.1 < norms[0] / norms[1] < 10


def dropped(problem):
    """The last 8 tokens are left out."""
    return problem.setting.case.formula(*log_softmaxes(problem), problem.tokens)[:-8].sum()


def cut(problem):
    """The last 400 ids are left out."""
    ways = (
        (problem.hidden_TD, problem.weight_VD),
        (
            problem.teacher_hidden_TD,
            problem.teacher_weight_VD,
        ),
    )
    both = [(h_TD @ w_VD[:-400].t()).float().log_softmax(-1) for h_TD, w_VD in ways]
    return problem.setting.case.formula(*both, problem.tokens).sum()


def four_jsd(problem):
    """Another divergence, scaled so that its value is near."""
    return 4 * formulas.even_jsd(*log_softmaxes(problem)).sum()


def clipped_low(problem):
    """PPO's clip on both sides, without clip-higher."""
    tok, (student_TV, _) = problem.tokens, log_softmaxes(problem)
    ratio_T = (formulas.chosen(student_TV, tok) - tok.old_logp).exp()
    return -torch.minimum(ratio_T * tok.adv, ratio_T.clamp(0.8, 1.2) * tok.adv).sum()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("case", "mistake"),
    [
        ("kl-teacher-student", dropped),
        ("kl-teacher-student", cut),
        ("kl-teacher-student", four_jsd),
        ("grpo", dropped),
        ("grpo", clipped_low),
        ("nll", dropped),
        ("jsd", cut),
    ],
)
def test_mistakes_are_wrong_in_every_dtype(setting, dtype, case, mistake):
    row = row_of(setting(case, 512, "64x8192", dtype=dtype), mistake)
    assert row["status"] == "wrong", row


# Not the compiled ones: compilation takes tens of seconds.
HONEST = (
    "sdkernels",
    "eager",
    "liger-chunked-1024",
    "liger-logprob",
    "liger-grpo",
    "trl-divergence",
    "trl-logprob",
    "trl-gkd",
)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["kl-teacher-student", "grpo", "nll", "logprob-entropy"])
def test_rounding_to_16_bits_is_not_wrong(setting, dtype, case):
    one = setting(case, 128, "64x2000", dtype=dtype)
    problem = Problem.make(one)
    answer = float64_answer(problem)
    bounds = bounds_of(problem, answer)
    found = {}
    for each in peers.select([name for name in HONEST if case in KNOWN[name].calls], case):
        if each.why_not(one, None) is None:
            found[each.name] = checked_row(each, problem, answer, bounds, one)
    assert {"sdkernels", "eager"} <= set(found)
    assert all(row["status"] == "ok" for row in found.values()), (bounds, found)


def test_the_bound_in_16_bits_is_a_multiple_of_what_plain_pytorch_gets_wrong(setting):
    bounds = {}
    for case in ("nll", "kl-teacher-student"):
        problem = Problem.make(setting(case, 256, "128x2000", dtype=torch.bfloat16))
        bounds[case] = bounds_of(problem, float64_answer(problem))
    # Log-likelihoods are rounded little: the least bound. A close teacher's gradient is a
    # difference of near numbers.
    assert bounds["nll"].gradient == 2 * torch.finfo(torch.bfloat16).eps
    assert 0.05 < bounds["kl-teacher-student"].gradient < 0.15
