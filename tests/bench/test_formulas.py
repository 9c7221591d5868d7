"""The plain formulas against the recipes' own, and against what torch calls the same."""

import torch
import torch.nn.functional as F

from sdkernels.bench import formulas
from sdkernels.bench.problem import Problem


def softmaxes(setting, case):
    problem = Problem.make(setting(case, tokens=32))
    student_TV = (problem.hidden_TD @ problem.weight_VD.t()).double().log_softmax(-1).detach()
    teacher_TV = problem.teacher_hidden_TD @ problem.teacher_weight_VD.t()
    return student_TV, teacher_TV.double().log_softmax(-1), problem.tokens.double()


def test_divergences_are_those_of_torch(setting):
    student, teacher, tok = softmaxes(setting, "jsd")
    kl = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(formulas.kl_teacher_student(student, teacher, tok), kl)
    kl = F.kl_div(teacher, student, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(formulas.kl_student_teacher(student, teacher, tok), kl)
    mixture = (0.5 * (student.exp() + teacher.exp())).log()
    halves = [
        F.kl_div(mixture, one, reduction="none", log_target=True) for one in (student, teacher)
    ]
    torch.testing.assert_close(
        formulas.jsd(student, teacher, tok), 0.5 * (halves[0] + halves[1]).sum(-1)
    )


def test_nll_and_entropy_are_those_of_torch(setting):
    student, _, tok = softmaxes(setting, "jsd")
    torch.testing.assert_close(
        formulas.nll(student, None, tok), F.nll_loss(student, tok.targets, reduction="none")
    )
    torch.testing.assert_close(
        formulas.entropy(student), torch.distributions.Categorical(logits=student).entropy()
    )


def test_top_k_with_a_tail_is_the_jsd_of_the_merged_vocabulary(setting, monkeypatch):
    student, teacher, tok = softmaxes(setting, "sdpo-topk")
    monkeypatch.setattr(formulas, "TOPK", 299)  # the tail is then the one entry left
    torch.testing.assert_close(
        formulas.sdpo_topk(student, teacher, tok), formulas.jsd(student, teacher, tok)
    )
    monkeypatch.setattr(formulas, "TOPK", 20)
    assert (formulas.sdpo_topk(student, teacher, tok) < formulas.jsd(student, teacher, tok)).all()


def test_the_surrogate_is_clipped_on_the_side_that_pays(setting):
    _, _, tok = softmaxes(setting, "dasd")
    far = tok.old_logp + 1.0  # a ratio of e
    loss = formulas.clipped_surrogate(far, tok)
    gain, cost = tok.adv > 0, tok.adv < 0
    torch.testing.assert_close(loss[gain], -1.28 * tok.adv[gain])
    torch.testing.assert_close(loss[cost], -torch.e * tok.adv[cost])
