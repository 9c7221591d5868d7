"""The teacher answers by itself under each context."""

from __future__ import annotations

import json
import random

import pytest

from sdkernels import contexts
from sdkernels.contexts import Example
from sdkernels.train import teacher_accuracy as module
from sdkernels.train.rollout import Sample, Sampling
from sdkernels.train.teacher_accuracy import TEACHER_FILE, save, teacher_accuracy


class Reader:
    """Answers what the prompt tells it, else by turns right and wrong, but 0+3 always wrong."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.prompts: list[list[str]] = []

    def generate(self, prompts_ids, num_generations, sampling, *, seed):
        texts = [self.tokenizer.decode(ids) for ids in prompts_ids]
        self.prompts.append(texts)
        return [[self._answer(text, i) for i in range(num_generations)] for text in texts]

    def _answer(self, prompt, index):
        if "It is" in prompt:
            text = "Answer: " + prompt.split("It is ")[1].split(".")[0]
        else:
            text = (
                "Answer: 3"
                if index % 2 and "0+3" not in prompt
                else "wait, maybe unlikely. Answer: 9"
            )
        return Sample(self.tokenizer(text)["input_ids"], text, False)


@pytest.fixture
def problems():
    return [
        Example(
            f"p{number}",
            [{"role": "user", "content": f"{number}+{3 - number}?"}],
            answer="3",
            solution="It is 3." if number else None,
            task="number",
        )
        for number in range(3)
    ]


@pytest.fixture
def ask(make_model, tokenizer, problems):
    def call(names, **settings):
        reader = Reader(tokenizer)
        chosen = [contexts.get(name) if isinstance(name, str) else name for name in names]
        settings = {"k": 2, "rollout": reader, "examples": problems} | settings
        examples = settings.pop("examples")
        result = teacher_accuracy(make_model(), tokenizer, examples, chosen, **settings)
        return result, reader

    return call


def test_scores_under_each_context(ask):
    result, reader = ask(["none", "reference_solution"])
    plain, told = result["contexts"]
    assert [plain["context"], told["context"]] == ["none", "reference_solution"]
    assert plain["accuracy"] == pytest.approx(1 / 3)
    assert (plain["answers"], plain["change"]) == (6, None)
    assert plain["markers"]["per_response"] == pytest.approx(4 / 3)  # wait, maybe
    assert plain["markers_published"]["per_response"] == 2.0  # and unlikely
    # The first problem has no solution: it is left out of score and change, and counted.
    assert (told["accuracy"], told["n"], told["answers"]) == (1.0, 2, 4)
    assert told["without_context"] == 2
    assert told["change"]["difference"] == 0.5
    # By turns right and wrong, but for one problem that is always wrong; ties share the vote.
    assert plain["pass_at"] == {"1": pytest.approx(1 / 3), "2": pytest.approx(2 / 3)}
    assert plain["maj_at_k"] == pytest.approx(1 / 3)
    assert told["pass_at"]["2"] == told["maj_at_k"] == 1.0
    assert told["change"]["n"] == 2
    assert told["markers"]["total"] == 0
    assert told["entropy"] > 0
    assert (told["change"]["baseline"], result["second"]) == ("first", None)
    asked_plain, asked_told = reader.prompts
    assert (len(asked_plain), len(asked_told)) == (3, 4)
    assert all("It is 3." in prompt for prompt in asked_told)


def test_attempts_of_the_first_round_are_the_group(ask):
    result, reader = ask(["sibling_solution"])
    entry = result["contexts"][1]
    # A wrong attempt sees the right one of its group; the right one has no other to show.
    assert (entry["answers"], entry["without_context"]) == (2, 4)
    assert "pass_at" not in entry  # a problem with one answer has no Pass@2
    first, second, told = reader.prompts
    assert first == second  # the baseline asks the question alone once more
    assert all("Answer: 3" in prompt for prompt in told)
    assert entry["settings"] == {}
    assert entry["change"]["baseline"] == "second"
    assert result["second"]["accuracy"] == result["contexts"][0]["accuracy"]


class Coin:
    """Answers right half of the time, whatever it is told; each seed is its own row of tosses."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.seeds = []

    def generate(self, prompts_ids, num_generations, sampling, *, seed):
        self.seeds.append(seed)
        tosses = random.Random(seed)
        return [[self._toss(tosses) for _ in range(num_generations)] for _ in prompts_ids]

    def _toss(self, tosses):
        text = f"Answer: {tosses.choice('12')}"
        return Sample(self.tokenizer(text)["input_ids"], text, False)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("verifier_feedback", {}),
        ("failed_attempt", {}),
        ("sibling_solution", {}),
        ("sibling_solution", {"allow_self": True}),
        ("wrong_answer", {"choose": "sibling"}),
        ("final_answer", {}),
    ],
)
def test_what_chooses_the_problems_is_not_their_baseline(
    make_model, tokenizer, monkeypatch, name, settings, k
):
    """No context changes a coin, whichever problems it has something to say for."""
    monkeypatch.setattr(module, "mean_entropy", lambda *_, **__: 0.0)
    problems = [
        Example(f"p{number}", [{"role": "user", "content": "?"}], answer="1", task="number")
        for number in range(400)
    ]
    coin = Coin(tokenizer)
    context = contexts.get(name, **settings)
    result = teacher_accuracy(make_model(), tokenizer, problems, [context], k=k, rollout=coin)
    assert len(set(coin.seeds)) == len(coin.seeds)
    change = result["contexts"][1]["change"]
    if k < context.least_group:
        assert change is None
        return
    assert (result["second"] is None) == (name == "final_answer")
    low, high = change["interval"]
    assert low <= 0 <= high


def test_changed_settings_are_kept(ask):
    chosen = contexts.get("sibling_solution", choose="shortest")
    result, _ = ask([chosen])
    assert result["contexts"][1]["settings"] == {"choose": "shortest"}


def test_a_context_with_nothing_to_say_has_no_score(ask, problems):
    result, _ = ask(["reference_solution"], examples=problems[:1])
    entry = result["contexts"][1]
    assert (entry["accuracy"], entry["n"], entry["change"], entry["entropy"]) == (
        None,
        0,
        None,
        None,
    )


def test_results_are_files(ask, tmp_path):
    result, _ = ask([], sampling=Sampling(max_new_tokens=4))
    assert save(tmp_path, result) == tmp_path / TEACHER_FILE
    assert json.loads(save(tmp_path / "x.json", result).read_text())["k"] == 2
    assert len(result["contexts"]) == 1


def test_refusals(ask, problems):
    with pytest.raises(ValueError, match="at least 1 answer"):
        ask([], k=0)
    with pytest.raises(ValueError, match="lower max_new_tokens"):
        ask(["reference_solution"], window=200)
    with pytest.raises(ValueError, match="two have the same id"):
        ask([], examples=[problems[0], problems[0]])
    with pytest.raises(ValueError, match="needs a critic"):
        ask(["step_critique"])
