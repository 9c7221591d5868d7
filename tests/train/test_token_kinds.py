"""Which tokens count as style, which as mathematics."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sdkernels.train.markers import MARKERS
from sdkernels.train.token_kinds import KINDS, TokenKinds, token_kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" 48", "math"),
        ("x2", "math"),
        (" =", "math"),
        (" -", "math"),
        ("\\frac", "math"),
        ("\u2264", "math"),
        (" Wait,", "style"),
        ("Hmm", "style"),
        (" so", "style"),
        ("Let's", "style"),
        (" buns", "other"),
        (" half-baked", "other"),  # the hyphen of a word is no minus
        (".", "other"),
        ("\n\n", "other"),
        ("", "other"),
        (" son", "other"),  # begins like "so"
    ],
)
def test_token_kind(text, kind):
    assert KINDS[token_kind(text)] == kind


def test_every_marker_is_style():
    assert {KINDS[token_kind(f" {marker.title()}")] for marker in MARKERS} == {"style"}


def test_ids_are_decoded_once_and_control_tokens_are_other():
    asked = []

    def decode(ids):
        asked.append(ids)
        return {0: "<|im_end|>", 1: " 7", 2: " wait"}[ids[0]]

    kinds = TokenKinds(SimpleNamespace(all_special_ids=[0], decode=decode))
    assert [KINDS[kind] for kind in kinds([1, 0, 2, 1])] == ["math", "other", "style", "math"]
    kinds([1, 2, 0])
    assert sorted(asked) == [[1], [2]]
