"""The sample that `sdkernels contexts --show` renders."""

import pytest

from sdkernels import contexts
from sdkernels.contexts import sample


@pytest.mark.parametrize("name", contexts.names())
def test_every_context_shows_on_the_sample(name: str) -> None:
    text = contexts.render_sample(name)
    asked = name in ("regeneration", "rationalise", "self_reflection")
    assert text.startswith("(asked of the writer)" if asked else "<user>")
    assert "A box holds 12 pens." in text or name == "reference_only"
    assert ("[end of " in text) == (name not in ("none", "instruction"))
    assert "no signal" not in text


def test_settings_are_passed_on() -> None:
    assert "3 * 12 - 7 = 29" in contexts.render_sample("sibling_solution", choose="shortest")


def test_what_belongs_to_a_prompt_is_shown_with_it() -> None:
    assert "(the other side, 1 of 1)" in contexts.render_sample("contrastive")
    assert "(first error of the response)\n\nStep 2: 36 + 7" in contexts.render_sample(
        "self_reflection"
    )


def test_an_empty_context_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "ROLLOUTS", sample.ROLLOUTS[:1])
    text = contexts.render_sample("sibling_solution")
    assert text == "(no signal for the sample: no other correct response in the group: weight 0)"
