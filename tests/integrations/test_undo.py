import types

import pytest

from sdkernels.integrations.undo import Undo, swapped


def test_undo_restores_once() -> None:
    calls: list[int] = []
    undo = Undo("a change", lambda: calls.append(1))
    assert undo.active
    assert repr(undo) == "<undo of a change>"
    undo()
    undo()
    assert calls == [1]
    assert not undo.active
    assert repr(undo) == "<undo of a change, done>"


def test_undo_as_a_context_manager() -> None:
    calls: list[int] = []
    with pytest.raises(KeyError), Undo("a change", lambda: calls.append(1)):
        raise KeyError
    assert calls == [1]


def test_an_undo_that_fails_stays_active() -> None:
    def fail() -> None:
        raise RuntimeError("someone else changed it")

    undo = Undo("a change", fail)
    with pytest.raises(RuntimeError, match="someone else"):
        undo()
    assert undo.active


def test_swapped_restores_what_was_there_and_removes_what_was_not() -> None:
    owner = types.SimpleNamespace(kept=1)
    with swapped(owner, "kept", 2), swapped(owner, "new", 3):
        assert (owner.kept, owner.new) == (2, 3)
    assert vars(owner) == {"kept": 1}


def test_swapped_restores_after_an_error() -> None:
    class Thing:
        def value(self) -> int:
            return 1

    def fails() -> None:
        with swapped(thing, "value", lambda: 2):
            assert thing.value() == 2
            raise KeyError

    thing = Thing()
    with pytest.raises(KeyError):
        fails()
    assert thing.value() == 1
    assert vars(thing) == {}
