"""The sample that `sdkernels contexts --show` renders."""

import pytest

from sdkernels import contexts


@pytest.mark.parametrize("name", contexts.names())
def test_every_context_shows_on_the_sample(name: str) -> None:
    text = contexts.render_sample(name)
    assert text.startswith("<user>\nA box holds 12 pens.")
    assert ("[end of " in text) == (name != "none")


def test_settings_are_passed_on() -> None:
    assert "3 * 12 - 7 = 29" in contexts.render_sample("sibling_solution", choose="shortest")
