"""TRL is not made for Python 3.10 any more, where we are."""

import pytest


@pytest.fixture(autouse=True)
def _trl() -> None:
    pytest.importorskip("trl", reason="TRL is not installed (it needs Python 3.11)")
