"""Settings of a recipe: what each one accepts, what it means, and when it has an effect.

A recipe declares its settings as data, so that the same declaration validates `get(name, **cfg)`,
fills in the defaults and prints the table of `sdkernels recipes`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

Accept = Callable[[Any], bool]


@dataclass(frozen=True)
class Above:
    """All numbers above `low`, as the values of a `Setting.when`."""

    low: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, Real) and float(value) > self.low


When = tuple[str, "tuple[Any, ...] | Above"]


@dataclass(frozen=True)
class Setting:
    """One setting of a recipe.

    Attributes:
        default: in force unless given.
        doc: one line: meaning and unit.
        accepts: whether a value is legal.
        accepted: the same in words, for messages.
        convert: applied to an accepted value.
        when: the other setting, and the values of it, under which this one has an effect, such as
            `("support", ("student_topk",))`.
        or_when: a second condition of that kind; either is enough.
        otherwise: its value where it has no effect. A caller who asks for another one is told so
            instead of being ignored.
    """

    default: Any
    doc: str
    accepts: Accept
    accepted: str
    convert: Callable[[Any], Any] = lambda value: value
    when: When | None = None
    or_when: When | None = None
    otherwise: Any = None

    def check(self, recipe: str, name: str, value: Any) -> Any:
        if not self.accepts(value):
            raise ValueError(
                f"recipe {recipe!r}: {name}={value!r} is not accepted; give {self.accepted}"
            )
        return self.convert(value)


def number(
    default: float | None,
    doc: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float | None = None,
    optional: bool = False,
    when: When | None = None,
    or_when: When | None = None,
    otherwise: float | None = None,
) -> Setting:
    """A finite number in [low, high], or strictly above `above`; `optional`: or None (off)."""

    def accepts(value: Any) -> bool:
        if value is None:
            return optional
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            return False
        size = float(value)
        return low <= size <= high and (above is None or size > above)

    return Setting(
        default=default,
        doc=doc,
        accepts=accepts,
        accepted=_range_words(low, high, above) + (", or None for off" if optional else ""),
        convert=lambda value: None if value is None else float(value),
        when=when,
        or_when=or_when,
        otherwise=otherwise,
    )


def integer(
    default: int | None,
    doc: str,
    *,
    low: int,
    optional: bool = False,
    when: When | None = None,
) -> Setting:
    """A whole number of at least `low`; `optional`: or None."""

    def accepts(value: Any) -> bool:
        if value is None:
            return optional
        return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= low

    return Setting(
        default=default,
        doc=doc,
        accepts=accepts,
        accepted=f"a whole number >= {low}" + (", or None" if optional else ""),
        convert=lambda value: None if value is None else int(value),
        when=when,
    )


def choice(default: str, options: tuple[str, ...], doc: str) -> Setting:
    """One of `options`."""
    words = ", ".join(repr(option) for option in options)
    return Setting(default, doc, lambda v: isinstance(v, str) and v in options, f"one of {words}")


def flag(default: bool, doc: str, *, when: When | None = None) -> Setting:
    """True or False."""
    return Setting(default, doc, lambda v: isinstance(v, bool), "True or False", when=when)


def resolve(
    recipe: str, settings: Mapping[str, Setting], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Validate `given` against `settings` and fill in the rest.

    Raises:
        ValueError: an unknown setting, or a value that is not accepted or has no effect.
    """
    for name in given:
        if name not in settings:
            raise ValueError(unknown(f"setting of recipe {recipe!r}", name, settings))
    config = {
        name: setting.check(recipe, name, given.get(name, setting.default))
        for name, setting in settings.items()
    }
    for name, setting in settings.items():
        ways = [way for way in (setting.when, setting.or_when) if way is not None]
        if not ways or any(config[other] in values for other, values in ways):
            continue
        if name in given and config[name] != setting.otherwise:
            found = " and ".join(f"{other}={config[other]!r}" for other, _ in ways)
            wanted = " or ".join(_condition_words(*way) for way in ways)
            raise ValueError(
                f"recipe {recipe!r}: {name}={config[name]!r} has no effect with {found}; leave it "
                f"out, or use it with {wanted}"
            )
        config[name] = setting.otherwise
    return config


def _condition_words(other: str, values: tuple[Any, ...] | Above) -> str:
    if isinstance(values, Above):
        return f"{other} > {values.low:g}"
    return " or ".join(f"{other}={value!r}" for value in values)


def published_as(name: object, sources: Mapping[str, str]) -> list[str]:
    """The keys of `sources` whose text has `name` for a word with capitals, as names of methods
    are written (SDPO, SD-Zero); case and punctuation of `name` don't count.
    """
    wanted = _plain_word(str(name))
    return [
        key
        for key, text in sources.items()
        if wanted in (_plain_word(word) for word in text.split() if word.lower() != word)
    ]


def _plain_word(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def unknown(
    kind: str, name: object, known: Collection[str], published: Collection[str] = ()
) -> str:
    """Message for a name that does not exist: nearest names first, then those that are `published`
    under it, then all of them.
    """
    near = difflib.get_close_matches(str(name), list(known), n=3, cutoff=0.5)
    near += [word for word in published if word not in near]
    hint = f"; did you mean {' or '.join(repr(word) for word in near)}?" if near else "."
    return f"unknown {kind}: {name!r}{hint} Known: {', '.join(sorted(known)) or '(none)'}"


def _range_words(low: float, high: float, above: float | None) -> str:
    if above is not None:
        return f"a number > {above:g}" + (f" and <= {high:g}" if math.isfinite(high) else "")
    if math.isfinite(low) and math.isfinite(high):
        return f"a number in [{low:g}, {high:g}]"
    if math.isfinite(low):
        return f"a number >= {low:g}"
    return "a finite number"
