"""Examples from reasoning-gym: reproducible, balanced, refused where nothing can verify them."""

import logging

import pytest

from sdkernels import contexts
from sdkernels.contexts import validate
from sdkernels.train.gym import INSTRUCTION, gym_examples
from sdkernels.train.gym_solutions import WRITERS
from sdkernels.train.verify import GYM_TASKS, verify


def test_the_same_seed_gives_the_same_examples_another_one_others() -> None:
    first = gym_examples("chain_sum,gsm_symbolic", size=10, seed=3)
    assert first == gym_examples("chain_sum,gsm_symbolic", size=10, seed=3)
    for other in (
        gym_examples("chain_sum,gsm_symbolic", size=10, seed=4),
        gym_examples("chain_sum,gsm_symbolic", size=10, seed=3, split="test"),
    ):
        assert not {e.prompt[0]["content"] for e in first} & {e.prompt[0]["content"] for e in other}


def test_a_larger_size_begins_with_the_smaller_one() -> None:
    small, large = (gym_examples("chain_sum, gcd", size=size) for size in (7, 30))
    assert large[:7] == small


def test_tasks_take_turns_and_ids_are_unique() -> None:
    examples = gym_examples("chain_sum,gcd,products", size=8)
    tasks = [example.task.removeprefix("reasoning_gym/") for example in examples]
    assert tasks == ["chain_sum", "gcd", "products"] * 2 + ["chain_sum", "gcd"]
    assert len({example.id for example in examples}) == 8


def test_an_example() -> None:
    [example] = gym_examples("leg_counting", size=1)
    assert example.prompt[0]["content"].endswith(f"?\n\n{INSTRUCTION}")
    assert example.prompt[0]["role"] == "user"
    assert example.solution is not None
    assert example.hint is not None
    assert example.answer is not None
    assert verify(f"Answer: {example.answer}", example).correct
    assert not verify("Answer: -1", example).correct


@pytest.mark.parametrize("task", sorted(GYM_TASKS - {"zebra_puzzles"}))
def test_every_listed_task_verifies_its_own_answers(task: str) -> None:
    for example in gym_examples(task, size=25, seed=1):
        assert verify(f"Some steps.\nAnswer: {example.answer}", example).correct
        assert not verify("Answer: something else", example).correct
        assert (example.solution is not None) == (task in WRITERS)


@pytest.mark.parametrize("name", ["reference_solution", "hint", "final_answer"])
def test_families_with_solutions_serve_every_context(name: str) -> None:
    examples = gym_examples(",".join(WRITERS), size=27)
    assert validate(examples, contexts.get(name)) == []


def test_a_family_without_solutions_is_reported_before_training() -> None:
    with pytest.raises(ValueError, match="needs `solution`, which 3 of 3 examples lack: reasoning"):
        validate(gym_examples("word_sorting", size=3), contexts.get("reference_solution"))


def test_settings_inline_shared_and_per_task() -> None:
    inline = gym_examples("chain_sum(min_terms=2, max_terms=2, max_digits=1)", size=20)
    shared = gym_examples(
        "chain_sum", size=20, settings={"min_terms": 2, "max_terms": 2, "max_digits": 1}
    )
    own = gym_examples(
        "chain_sum",
        size=20,
        settings={"chain_sum": {"min_terms": 2, "max_terms": 2, "max_digits": 1}},
    )
    assert inline == shared == own
    assert all(abs(int(example.answer or "")) < 20 for example in inline)
    negative = gym_examples("products(allow_negation=True)", size=40)
    assert any((example.answer or "").startswith("-") for example in negative)


def test_problems_with_wrong_answers_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        examples = gym_examples("basic_arithmetic(allow_parentheses=False)", size=20)
    assert len(examples) == 20
    assert "basic_arithmetic: left out" in caplog.text


def test_a_task_with_hardly_a_right_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WRITERS, "gcd", lambda entry: None)
    with pytest.raises(ValueError, match="'gcd': only 0 of 5 problems with these settings"):
        gym_examples("gcd", size=5)


def test_a_list_as_a_setting() -> None:
    examples = gym_examples("simple_equations(operators_weights=[0, 0, 1], max_terms=2)", size=5)
    assert all("+" not in example.prompt[0]["content"] for example in examples)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("chain_sun", r"'chain_sun' does not exist\. Did you mean 'chain_sum'"),
        ("n_queens", "'n_queens' has no verifier here that only parses"),
        ("chain_sum,chain_sum", "a task is named twice"),
        ("chain_sum,", r"expected `name` or `name\(setting=value, ...\)`"),
        ("chain_sum(max_terms=3", r"expected `name` or"),
        ("chain_sum(max_terms)", "expected setting=value in 'max_terms'"),
        ("chain_sum(max_term=3)", r"no setting 'max_term'\. Did you mean 'max_terms'"),
        ("chain_sum(seed=3)", "no setting 'seed'"),
        ("chain_sum(min_terms=0)", r"'chain_sum' refuses {'min_terms': 0}: min_terms must be pos"),
        ("chain_sum(min_terms=abc)", "refuses"),
    ],
)
def test_what_is_refused(tasks: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gym_examples(tasks, size=2)
