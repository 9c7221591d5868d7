"""The lab's tokens: digits, operators, and one word each for what a trace can do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

WORDS = (
    "<pad>",
    "<end>",
    *"0123456789",
    "+",
    "-",
    "*",
    "@",
    "=",
    ",",
    ";",
    "solve",
    "think",
    "wait",
    "so",
    "answer",
    "target",
    "hint",
    "critique",
    "solution",
)
ID = {word: number for number, word in enumerate(WORDS)}
PAD, END, WAIT = ID["<pad>"], ID["<end>"], ID["wait"]


def encode(words: Iterable[str]) -> list[int]:
    """Ids of the words.

    Raises:
        ValueError: a word that is not in the vocabulary.
    """
    try:
        return [ID[word] for word in words]
    except KeyError as error:
        raise ValueError(f"words: {error.args[0]!r} is not one of {' '.join(WORDS)}") from None


def decode(ids: Sequence[int]) -> list[str]:
    """Words of the ids, up to and without the first `<end>` or `<pad>`."""
    words = []
    for token in ids:
        if token in (PAD, END):
            break
        words.append(WORDS[token])
    return words


def two_digits(value: int) -> list[str]:
    """The words of a number from 0 to 99, tens first."""
    return [str(value // 10), str(value % 10)]
