"""Inputs: reproducible, copies in other memory, the float64 answer by another route."""

import math

import pytest
import torch

from sdkernels.bench.cases import CASES
from sdkernels.bench.problem import MOST_COPIES, Problem, float64_answer


def test_inputs_are_the_same_for_the_same_seed_and_others_for_another(setting):
    first, same, other = (Problem.make(setting(), seed) for seed in (0, 0, 1))
    assert torch.equal(first.hidden_TD, same.hidden_TD)
    assert torch.equal(first.tokens.old_logp, same.tokens.old_logp)
    assert not torch.equal(first.hidden_TD, other.hidden_TD)


def test_the_softmax_is_neither_flat_nor_one_peak(setting):
    problem = Problem.make(setting(tokens=64))
    logp_TV = (problem.hidden_TD @ problem.weight_VD.t()).log_softmax(-1)
    entropy = -(logp_TV.exp() * logp_TV).sum(-1).mean()
    assert 0.3 * math.log(300) < entropy < 0.9 * math.log(300)


def test_own_teacher_is_the_very_weight_without_its_gradient(setting):
    problem = Problem.make(setting(own_teacher=True))
    for one in problem.copies(cache_bytes=10 * problem.nbytes)[:2]:
        assert one.teacher_weight_VD.data_ptr() == one.weight_VD.data_ptr()
        assert one.weight_VD.requires_grad
        assert not one.teacher_weight_VD.requires_grad
    external = Problem.make(setting())
    assert external.teacher_weight_VD.data_ptr() != external.weight_VD.data_ptr()
    assert not torch.equal(external.teacher_weight_VD, external.weight_VD)


def test_copies_are_equal_lie_elsewhere_and_exceed_the_cache(setting):
    problem = Problem.make(setting())
    cache_bytes = 3 * problem.nbytes
    copies = problem.copies(cache_bytes)
    assert sum(copy.nbytes for copy in copies) > 2 * cache_bytes
    assert len({copy.weight_VD.data_ptr() for copy in copies}) == len(copies)
    assert torch.equal(copies[-1].tokens.adv, problem.tokens.adv)
    assert [leaf.requires_grad for leaf in copies[-1].leaves] == [True, True]
    assert len(problem.copies(cache_bytes=0)) == 1
    # Copies of a few numbers would take minutes to make.
    assert len(problem.copies(cache_bytes=1 << 40)) == MOST_COPIES


@pytest.mark.parametrize(
    "name", ["hidden_TD", "weight_VD", "teacher_hidden_TD", "teacher_weight_VD"]
)
def test_the_fingerprint_tells_changed_inputs(setting, name):
    problem = Problem.make(setting())
    before = problem.fingerprint()
    assert before == problem.fingerprint()
    with torch.no_grad():
        getattr(problem, name)[-1, -1] += 1e-3
    assert before != problem.fingerprint()
    problem = Problem.make(setting())
    problem.tokens.adv[-1] += 1.0
    assert before != problem.fingerprint()


@pytest.mark.parametrize(
    ("tokens", "count", "kept", "length"),
    [(64, 20, 16, 8), (64, 16, 16, 8), (61, 60, 56, 8), (64, 5, 5, 5), (64, 64, 64, 8)],
)
def test_the_first_tokens_are_whole_sequences(setting, tokens, count, kept, length):
    problem = Problem.make(setting("grpo", tokens=tokens)).first(count)
    assert problem.setting.tokens == kept
    assert problem.sequence_tokens == length
    assert {len(value) for _, value in problem.tokens.items()} == {kept}
    adv_BL = problem.tokens.adv.view(-1, length)
    assert torch.equal(adv_BL, adv_BL[:, :1].expand_as(adv_BL))
    assert len(set(adv_BL[:, 0].tolist())) == len(adv_BL)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("frozen", [False, True])
def test_what_takes_a_gradient(setting, case, frozen):
    problem = Problem.make(setting(case, frozen=frozen))
    backward = CASES[case].backward
    assert len(problem.leaves) == (0 if not backward else 1 if frozen else 2)
    assert (problem.teacher_hidden_TD is not None) == CASES[case].teacher


def test_the_answer_does_not_depend_on_its_chunks(setting, monkeypatch):
    problem = Problem.make(setting("dasd", tokens=24))
    whole = float64_answer(problem)
    monkeypatch.setattr("sdkernels.bench.problem.CHUNK_TOKENS", 7)
    chunked = float64_answer(problem)
    assert torch.allclose(whole.value, chunked.value, rtol=1e-12)
    for one, other in zip(whole.gradients, chunked.gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_the_gate_of_dasd_pulls_and_pushes(setting):
    tok = Problem.make(setting("dasd", tokens=64)).tokens
    problem = Problem.make(setting("dasd", tokens=64))
    logp_TV = (problem.hidden_TD @ problem.weight_VD.t()).log_softmax(-1)
    above = (-(logp_TV.exp() * logp_TV).sum(-1) > tok.tau).float().mean()
    assert 0.1 < above < 0.3
    assert len(set(tok.adv.tolist())) == 8
    assert (tok.old_logp <= 0).all()
