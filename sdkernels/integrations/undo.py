"""Changes to other people's objects, and how to take them back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any


class Undo:
    """What a patch returns: call it to take the patch back, or use it as a context manager.

    A second call does nothing. Objects that were changed by someone else in the meantime are left
    alone, with an error that says so.
    """

    def __init__(self, what: str, restore: Callable[[], None]) -> None:
        self._what = what
        self._restore = restore
        self.active = True

    def __call__(self) -> None:
        if self.active:
            self._restore()
            self.active = False

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self()

    def __repr__(self) -> str:
        return f"<undo of {self._what}{'' if self.active else ', done'}>"


@contextmanager
def swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` inside the block; an instance attribute that was not there before is
    removed again.
    """
    held = vars(owner)
    missing = name not in held
    before = held.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
