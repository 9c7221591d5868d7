"""Scores of sampled answers."""

from __future__ import annotations

import math

import pytest
import torch

from sdkernels.contexts import Example
from sdkernels.train.evaluation import (
    compare,
    evaluate,
    headline,
    read_result,
    save_result,
)
from sdkernels.train.rollout import Sample, Sampling


class Answers:
    """Gives the texts we say, per problem."""

    def __init__(self, tokenizer, texts):
        self.tokenizer, self.texts = tokenizer, texts

    def generate(self, prompts_ids, num_generations, sampling, *, seed):
        return [
            [Sample(self.tokenizer(text)["input_ids"], text, False) for text in group]
            for group in self.texts
        ]


def problem(name, answer):
    return Example(name, [{"role": "user", "content": "?"}], answer=answer, task="number")


@pytest.fixture
def run(make_model, tokenizer):
    def call(problems, texts, **settings):
        settings = {"k": len(texts[0]), "rollout": Answers(tokenizer, texts)} | settings
        return evaluate(make_model(), tokenizer, problems, **settings)

    return call


def test_scores(run):
    problems = [problem("a", "3"), problem("b", "5")]
    texts = [
        ["Answer: 3", "Answer: 3.0", "Answer: 4", "wait, no idea"],
        ["Answer: 6", "Answer: 5", "maybe Answer: 6", "Answer: 6"],
    ]
    result = run(problems, texts)
    assert result["accuracy"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert result["pass_at"] == {
        "1": pytest.approx(3 / 8),
        "2": pytest.approx(((1 - 1 / 6) + 1 / 2) / 2),
        "4": pytest.approx(1.0),
    }
    assert result["maj_at_k"] == 0.5  # 3 and 3.0 are one vote; the second problem votes for 6
    lengths = [len(text) for group in texts for text in group]
    assert result["completion_length"] == pytest.approx(sum(lengths) / 8)
    assert result["markers_per_1k"] == pytest.approx(1000 * 2 / sum(lengths))
    assert (result["n"], result["k"], result["truncated_share"]) == (2, 4, 0)
    low, high = result["accuracy_ci"]
    assert (low, high) == (0.25, 0.5)  # two problems: their scores are all that can be drawn
    assert [entry["accuracy"] for entry in result["per_example"]] == [0.5, 0.25]
    assert result["distinct_answers"] == 2.0  # 3, 4 and 5, 6
    assert set(headline(result)) == set(result) - {"per_example"}


def test_no_right_answer_is_not_a_certain_zero(run):
    problems = [problem(str(i), "3") for i in range(4)]
    result = run(problems, [["Answer: 4", "Answer: 5"]] * 4)
    assert result["accuracy"] == 0.0
    # Wilson's interval of 0 of 4 problems, not of 0 of 8 answers.
    assert result["accuracy_ci"] == [0.0, pytest.approx(0.4899, abs=1e-4)]


def test_markers_as_published_and_by_whole_words(run):
    result = run([problem("a", "3")], [["wait, unlikely", "checked: Answer: 3"]])
    words, published = result["markers"], result["markers_published"]
    assert (words["total"], published["total"]) == (1, 3)
    assert published["by_marker"]["likely"] == 1
    assert published["per_response"] == 1.5
    assert published["per_word"] == pytest.approx(3 / 5)
    assert words["per_1k_tokens"] == result["markers_per_1k"]
    assert result["per_example"][0]["marker_count"] == 0.5


def test_entropy_is_that_of_the_full_logits(make_model, tokenizer, make_problems):
    model = make_model().train()
    problems = make_problems(3)
    sampling = Sampling(max_new_tokens=6, temperature=0.7)
    result = evaluate(model, tokenizer, problems, k=2, sampling=sampling, seed=4)
    assert model.training
    from sdkernels.train.prompts import PromptEncoder
    from sdkernels.train.rollout import TransformersRollout, derived_seed

    prompts = [PromptEncoder(tokenizer).ids(example.prompt) for example in problems]
    groups = TransformersRollout(lambda: model, tokenizer).generate(
        prompts, 2, sampling, seed=derived_seed(4, "evaluate")
    )
    model.eval()
    total, count = 0.0, 0
    for prompt, group in zip(prompts, groups, strict=True):
        for sample in group:
            with torch.no_grad():
                logits = model(torch.tensor([prompt + sample.token_ids])).logits[0]
            logp = (logits[len(prompt) - 1 : -1].double() / 0.7).log_softmax(-1)
            total -= float((logp.exp() * logp).sum())
            count += len(sample.token_ids)
    assert result["entropy"] == pytest.approx(total / count, rel=1e-5)
    assert evaluate(model, tokenizer, problems, with_entropy=False)["entropy"] is None


def test_the_same_seed_gives_the_same_result(make_model, tokenizer, make_problems):
    def once(seed):
        return evaluate(
            make_model(),
            tokenizer,
            make_problems(3),
            k=2,
            sampling=Sampling(max_new_tokens=5),
            seed=seed,
        )

    assert once(1) == once(1)
    assert once(1) != once(2)


def test_comparing_pairs_the_problems(run):
    problems = [problem(str(i), "3") for i in range(6)]
    before = run(problems, [["Answer: 4"]] * 3 + [["Answer: 3"]] * 3)
    after = run(problems, [["Answer: 3"]] * 5 + [["Answer: 4"]])
    changes = compare(before, after)
    assert set(changes) == {"accuracy", "completion_length", "marker_count"}
    for entry in before["per_example"]:
        del entry["marker_count"]  # as an older version wrote it
    assert set(compare(before, after)) == {"accuracy", "completion_length"}
    change = changes["accuracy"]
    assert change["difference"] == pytest.approx(2 / 6)
    assert (change["better"], change["worse"], change["n"]) == (3, 1, 6)
    with pytest.raises(ValueError, match="different problems"):
        compare(before, run(problems[:2], [["Answer: 4"]] * 2))


def test_results_are_files(run, tmp_path):
    result = run([problem("a", "3")], [["Answer: 3"]])
    save_result(tmp_path / "r.json", result)
    assert read_result(tmp_path / "r.json") == result
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="has no `per_example`"):
        read_result(tmp_path / "x.json")
    with pytest.raises(ValueError, match="not a result"):
        read_result(tmp_path / "none.json")


def test_refusals(run, make_problems):
    with pytest.raises(ValueError, match="no example to evaluate"):
        run([], [["x"]])
    with pytest.raises(ValueError, match="greedy answers are all the same"):
        run(make_problems(1), [["a", "b"]], sampling=Sampling(temperature=0))
    with pytest.raises(ValueError, match="has no `answer`"):
        run([Example("a", [{"role": "user", "content": "?"}])], [["x"]])
    with pytest.raises(ValueError, match="at least 1 answer"):
        run(make_problems(1), [["a"]], k=0)
    with pytest.raises(ValueError, match="max_prompt_length"):
        run(make_problems(1), [["a"]], max_prompt_length=3)


def test_no_answer_at_all(run):
    result = run([problem("a", "3")], [[""]])
    assert result["accuracy"] == 0
    assert result["entropy"] is None
    assert result["markers_per_1k"] is None
    assert not math.isnan(result["maj_at_k"])
