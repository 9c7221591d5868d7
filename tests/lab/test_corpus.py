import random
from collections import Counter

from helpers.lab_evaluator import read_problem

from sdkernels.lab.corpus import batches, draw_sample
from sdkernels.lab.vocabulary import END, WORDS


def test_the_response_starts_behind_think_and_ends_with_end() -> None:
    rng = random.Random(0)
    for _ in range(300):
        sample = draw_sample(rng)
        assert WORDS[sample.ids[sample.start - 1]] == "think"
        assert WORDS[sample.ids[sample.start]] in "+-*@"
        assert sample.ids.index(END) == len(sample.ids) - 1


def test_half_of_the_samples_have_a_context_and_all_lengths_occur() -> None:
    rng = random.Random(0)
    words = [[WORDS[token] for token in draw_sample(rng).ids] for _ in range(2000)]
    kinds = Counter(
        next((word for word in row if word in ("hint", "target", "critique", "solution")), "none")
        for row in words
    )
    assert abs(kinds["none"] / 2000 - 0.5) < 0.04
    assert all(abs(kinds[kind] / 2000 - 0.125) < 0.03 for kind in kinds if kind != "none")
    assert len(kinds) == 5
    assert {len(read_problem(row)[1]) for row in words} == {1, 2, 3, 4, 5, 6}


def test_batches_hold_every_sample_and_keep_to_the_tokens() -> None:
    found = batches(random.Random(0), 1000)
    assert sum(len(batch) for batch in found) == 1024
    for batch in found:
        assert batch
        assert len(batch) * max(len(sample.ids) for sample in batch) <= 1000
