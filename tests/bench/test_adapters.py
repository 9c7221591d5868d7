"""What single adapters owe the libraries that they call."""

import sys
from types import ModuleType

import pytest
import torch

from sdkernels.bench import peers
from sdkernels.bench.check import bounds_of
from sdkernels.bench.peer import Peer
from sdkernels.bench.peers import compiled_chunks
from sdkernels.bench.problem import Problem, float64_answer
from sdkernels.bench.runner import checked_row

LIGER = [name for name in peers.load() if name.startswith(("liger-chunked", "liger-grpo"))]


class VerlsContract(torch.autograd.Function):
    """log-prob and entropy with the assertion of verl 0.9.1, kernels.py line 1553."""

    @staticmethod
    def forward(ctx, hidden_TD, weight_VD, targets_T, temperature, reduction, group):
        logp_TV = (hidden_TD @ weight_VD.t()).log_softmax(-1)
        ctx.save_for_backward(hidden_TD, weight_VD, targets_T, logp_TV)
        chosen_T = logp_TV.gather(-1, targets_T[:, None])[:, 0]
        return chosen_T, -(logp_TV.exp() * logp_TV).sum(-1)

    @staticmethod
    def backward(ctx, of_logp_T, of_entropy_T):
        assert of_logp_T.is_contiguous()
        assert of_entropy_T.is_contiguous()
        hidden_TD, weight_VD, targets_T, logp_TV = ctx.saved_tensors
        prob_TV = logp_TV.exp()
        entropy_T = -(prob_TV * logp_TV).sum(-1)
        dz_TV = -prob_TV * of_logp_T[:, None]
        dz_TV -= of_entropy_T[:, None] * prob_TV * (logp_TV + entropy_T[:, None])
        dz_TV[torch.arange(len(targets_T)), targets_T] += of_logp_T
        return dz_TV @ weight_VD, dz_TV.t() @ hidden_TD, None, None, None, None


@pytest.mark.parametrize("case", peers.load()["verl"].calls)
def test_verl_gets_the_contiguous_gradients_that_it_asserts(setting, monkeypatch, case):
    name = "verl.utils.kernel.linear_cross_entropy"
    for package in ("verl", "verl.utils", "verl.utils.kernel"):
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    module = ModuleType(name)
    module.linear_cross_entropy = VerlsContract.apply
    monkeypatch.setitem(sys.modules, name, module)
    problem = Problem.make(setting(case))
    answer = float64_answer(problem)
    here = Peer("verl", "verl", peers.load()["verl"].calls)
    row = checked_row(here, problem, answer, bounds_of(problem, answer), problem.setting)
    assert row["status"] == "ok", row


@pytest.mark.parametrize("frozen", [False, True])
def test_chunks_do_not_pay_for_all_tokens_and_give_the_same_bits(setting, monkeypatch, frozen):
    plain = compiled_chunks._compiled.__wrapped__
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    chunk, seen = plain("kl-teacher-student"), []

    def watched(hidden_CD, *rest):
        seen.append(hidden_CD)
        return chunk(hidden_CD, *rest)

    monkeypatch.setattr(compiled_chunks, "_compiled", lambda case: watched)
    monkeypatch.setattr(compiled_chunks, "CHUNK_TOKENS", 6)
    problem = Problem.make(setting(tokens=16, frozen=frozen))
    value = compiled_chunks._call(problem)
    got = [leaf.grad for leaf in problem.leaves]
    assert [len(one) for one in seen] == [6, 6, 4]
    assert all(one.is_leaf for one in seen)

    problem.clear()
    losses = []
    for lo in range(0, 16, 6):
        rows = slice(lo, lo + 6)
        loss = chunk(
            problem.hidden_TD[rows],
            problem.weight_VD,
            problem.teacher_hidden_TD[rows],
            problem.teacher_weight_VD,
            dict(problem.tokens.rows(lo, lo + 6).items()),
        )
        loss.backward()
        losses.append(loss.detach())
    assert torch.equal(value, torch.stack(losses).sum())
    for one, leaf in zip(got, problem.leaves, strict=True):
        assert torch.equal(one, leaf.grad)


@pytest.mark.parametrize("name", [name for name in LIGER if "compiled" not in name])
def test_ligers_gradients_are_not_passed_over_once_more(setting, name):
    """Its backward pass multiplies them by the upstream gradient unless that is 1."""
    peer = peers.load()[name]
    case = "grpo" if "grpo" in name else "kl-teacher-student"
    if peer.why_not(setting(case), None) is not None:
        pytest.skip("Liger is not installed")
    loss = peer.calls[case](Problem.make(setting(case)))
    assert "Liger" in loss.grad_fn.name()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("tokens", "checked"), [(56, 16), (56, 20), (24, 17), (400, 20)])
def test_liger_grpo_is_right_on_the_first_tokens_of_uneven_sequences(setting, tokens, checked):
    peer = peers.load()["liger-grpo"]
    whole = setting("grpo", tokens=tokens)
    if peer.why_not(whole, None) is not None:
        pytest.skip("Liger is not installed")
    problem = Problem.make(whole).first(checked)
    answer = float64_answer(problem)
    row = checked_row(peer, problem, answer, bounds_of(problem, answer), whole)
    assert row["status"] == "ok", row
