from typing import Any

import pytest
from helpers.lab_evaluator import words

from sdkernels.lab import base_facts as module
from sdkernels.lab.base_facts import base_facts, step_gaps, token_kinds
from sdkernels.lab.contexts import CONTEXTS
from sdkernels.lab.evaluate import ProblemSet, grade
from sdkernels.lab.problems import Problem, Step
from sdkernels.lab.sample import Sampled
from sdkernels.lab.vocabulary import END, WORDS, encode

PROBLEM = Problem("mixed", 47, (Step("+", 36), Step("*", 7)))
TEXT = "+ 3 6 = 7 3 wait 7 + 6 = 1 3 , 4 + 3 + 1 = 8 so 8 3 ; * 7 = 2 1 ; answer 2 1"


def response(text: str) -> Sampled:
    ids = [*encode(words(text)), END]
    return Sampled(ids, [0.5] * len(ids))


def test_kinds_of_tokens_are_found() -> None:
    one = grade(PROBLEM, response(TEXT))
    kinds = token_kinds(one)
    shown = {kind: [WORDS[one.sampled.ids[at]] for at in found] for kind, found in kinds.items()}
    assert shown == {"right": ["8", "3"], "wrong": ["2", "1"], "wait": ["wait"]}


def test_steps_that_are_not_there_have_no_tokens() -> None:
    kinds = token_kinds(grade(PROBLEM, response("+ 3 6 = 8 3")))
    assert kinds == {"right": [], "wrong": [], "wait": []}


def test_a_teacher_without_context_has_no_gap(blank_model: Any) -> None:
    graded = [grade(PROBLEM, response(TEXT))] * 2
    assert module.gaps_under(blank_model, graded, "none") == {
        "right": 0.0,
        "wrong": 0.0,
        "wait": 0.0,
    }
    told = module.gaps_under(blank_model, graded, "solution")
    assert all(value != 0 for value in told.values())


def test_a_context_without_signal_has_no_gaps(blank_model: Any) -> None:
    graded = [grade(PROBLEM, response("wait 8"))]
    assert module.gaps_under(blank_model, graded, "step_critique") == dict.fromkeys(module.KINDS)


def test_gaps_are_of_the_token_that_was_written(
    blank_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that always prefers the digit 8: its gap shows at that token alone."""
    import torch

    head = blank_model.lm_head.weight
    one = grade(PROBLEM, response(TEXT))

    def hidden(model: Any, prompts: Any, responses: Any) -> torch.Tensor:
        told = "solution" in [WORDS[token] for token in prompts[0]]
        row = torch.zeros(len(responses[0]), head.shape[1])
        row[:, 0] = 5.0 if told else 0.0
        return row.unsqueeze(0)

    with torch.no_grad():
        head.zero_()
        head[encode(["8"])[0], 0] = 1.0
    monkeypatch.setattr(module, "response_hidden", hidden)
    found = module.gaps_under(blank_model, [one], "solution")
    chance = -torch.tensor(float(len(WORDS))).log()
    likes = (torch.tensor([5.0] + [0.0] * (len(WORDS) - 1))).log_softmax(0)
    assert found["right"] == pytest.approx(float(likes[:2].mean() - chance), abs=1e-5)
    assert found["wrong"] == pytest.approx(float(likes[1] - chance), abs=1e-5)


def test_facts_cover_contexts_and_sets(blank_model: Any) -> None:
    sets = [ProblemSet(name, (PROBLEM,)) for name in ("in_domain", "longer")]
    facts = base_facts(blank_model, sets, 2)
    assert set(facts["teacher"]) == set(CONTEXTS)
    assert set(facts["without_wait"]) == {"in_domain", "longer"}
    assert all(one["waits"] == 0 for one in facts["without_wait"].values())
    assert set(facts["gaps"]) == set(CONTEXTS) - {"none"}
    assert step_gaps(blank_model, sets[0], 2, 0) == step_gaps(blank_model, sets[0], 2, 0)
