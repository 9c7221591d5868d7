"""Which parts of a response count as thinking."""

import time

import pytest

from sdkernels.contexts import strip_thinking


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("no tags", "no tags"),
        ("<think>a</think>b", "b"),
        ("x <think>a</think> y <think>b</think> z", "x  y  z"),
        ("opened in the prompt</think>b", "b"),
        ("<think>a</think>b</think>c", "c"),
        ("x <think>a</think> y <think>b</think></think>c", "c"),
        ("<think>a <think> b</think>c", "c"),
        ("<think>a <think>b</think> c</think>d", "d"),
        ("visible <think>cut off", "visible"),
        ("<think>cut off", ""),
        ("<thinking>a</thinking>b", "b"),
        ("<think>\n\n</think>\n\nb\n", "b"),
        ("", ""),
    ],
)
def test_strip_thinking(text: str, visible: str) -> None:
    assert strip_thinking(text) == visible


def test_it_is_linear_in_the_length() -> None:
    start = time.perf_counter()
    strip_thinking("<think>" * 300_000)
    strip_thinking("</think>" * 300_000)
    strip_thinking("<think></think>a" * 150_000)
    assert time.perf_counter() - start < 5
