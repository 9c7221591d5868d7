"""The table of shapes."""

import pytest

from sdkernels.bench import shapes


@pytest.mark.parametrize(
    ("name", "hidden", "vocab"),
    [
        ("qwen3-0.6b", 1024, 151936),
        ("qwen3-1.7b", 2048, 151936),
        ("qwen3-8b", 4096, 151936),
        ("llama-3-8b", 4096, 128256),
        ("gemma-3-1b", 1152, 262144),
        ("smollm2", 576, 49152),
    ],
)
def test_sizes_of_the_public_configs(name, hidden, vocab):
    shape = shapes.get(name)
    assert (shape.hidden, shape.vocab) == (hidden, vocab)


def test_a_shape_can_be_given_as_numbers():
    shape = shapes.get("96X1000")
    assert (shape.name, shape.hidden, shape.vocab) == ("96x1000", 96, 1000)


@pytest.mark.parametrize("wrong", ["0x10", "10x", "x10", "1x2x3", "-3x4"])
def test_other_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match="is not known"):
        shapes.get(wrong)
