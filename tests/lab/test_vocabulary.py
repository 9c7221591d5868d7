import pytest

from sdkernels.lab.vocabulary import END, ID, PAD, WAIT, WORDS, decode, encode, two_digits


def test_words_are_distinct_and_found_again() -> None:
    assert len(set(WORDS)) == len(WORDS) == len(ID)
    assert [WORDS[token] for token in encode(["wait", "7", "<end>"])] == ["wait", "7", "<end>"]
    assert WORDS[WAIT] == "wait"


@pytest.mark.parametrize("stop", [END, PAD])
def test_decoding_stops_at_the_end(stop: int) -> None:
    assert decode([*encode(["4", "2"]), stop, WAIT]) == ["4", "2"]


def test_unknown_word_is_named() -> None:
    with pytest.raises(ValueError, match="'perhaps' is not one of"):
        encode(["wait", "perhaps"])


def test_two_digits_puts_tens_first() -> None:
    assert two_digits(7) == ["0", "7"]
    assert two_digits(42) == ["4", "2"]
