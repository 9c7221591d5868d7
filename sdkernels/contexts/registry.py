"""Contexts by name, with settings checked against the builder's signature."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sdkernels.contexts.types import Builder, Context
from sdkernels.recipes.settings import published_as

Settings = Mapping[str, Any]

_REGISTRY: dict[str, Context] = {}
_VARYING: dict[str, dict[str, Any]] = {}


def register(
    name: str,
    *,
    summary: str,
    source: str,
    made_of: str | Callable[[Settings], str] = "data",
    reads_responses: bool | Callable[[Settings], bool] | None = None,
    needs: tuple[str, ...] | Callable[[Settings], tuple[str, ...]] = (),
    least_group: int | Callable[[Settings], int] = 1,
    on_empty: str | Callable[[Settings], str] = "never empty",
    **record: Any,
) -> Callable[[Builder], Builder]:
    """Add a builder to the registry under `name`.

    The builder is called as `build(example, rollout, group, services, **settings)` and returns a
    `Privileged` or None. Its keyword-only parameters are the settings of the context, with their
    defaults; their annotation, a `Literal`, a plain type or a union of plain types, says what they
    accept. With `ask=`, a function of the same arguments that returns the prompt of a writer, the
    builder gets the writer's answer as a fifth argument. `made_of`, `reads_responses`, `needs`,
    `least_group` and `on_empty` may be functions of the settings; where `reads_responses` is not
    given, `made_of` tells: all but "nothing" and "data" read them. `record` are further fields of
    `Context`.
    """
    if name in _REGISTRY:
        raise ValueError(f"context {name!r} is registered already")

    def add(build: Builder) -> Builder:
        defaults = {
            parameter.name: parameter.default
            for parameter in inspect.signature(build).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        _VARYING[name] = {
            "made_of": made_of,
            "reads_responses": reads_responses,
            "needs": needs,
            "least_group": least_group,
            "on_empty": on_empty,
        }
        _REGISTRY[name] = Context(
            name=name,
            summary=summary,
            source=source,
            build=build,
            settings=defaults,
            generates=record.pop("generates", "ask" in record),
            **_in_force(name, defaults),
            **record,
        )
        return build

    return add


def _in_force(name: str, settings: Settings) -> dict[str, Any]:
    """The fields of the record that may depend on the settings, for these."""
    fields = {
        field: value(settings) if callable(value) else value
        for field, value in _VARYING[name].items()
    }
    if fields["reads_responses"] is None:
        fields["reads_responses"] = fields["made_of"] not in ("nothing", "data")
    return fields


def get(name: str, **settings: Any) -> Context:
    """The context called `name`, with some of its settings changed. A number for a setting of text
    becomes its text.

    Raises:
        ValueError: unknown name or setting (with the nearest known ones, and those of the paper
            that is named), or a value that the setting does not accept.
    """
    if name not in _REGISTRY:
        sources = {known: context.source for known, context in _REGISTRY.items()}
        raise ValueError(_unknown("context", name, _REGISTRY, published_as(name, sources)))
    context = _REGISTRY[name]
    hints = get_type_hints(context.build) if settings else {}
    merged = dict(context.settings)
    for key, value in settings.items():
        if key not in context.settings:
            raise ValueError(_unknown(f"setting of context {name!r}", key, context.settings))
        merged[key] = str(value) if hints[key] is str and type(value) in (int, float) else value
        _check_setting(name, key, merged[key], hints[key])
    return replace(context, settings=merged, **_in_force(name, merged))


def text_settings(name: str) -> set[str]:
    """The settings of context `name` that hold text, so that what is typed for them is no number;
    none for an unknown name.
    """
    if name not in _REGISTRY:
        return set()
    context = _REGISTRY[name]
    hints = get_type_hints(context.build)
    return {key for key in context.settings if hints[key] is str}


def names() -> list[str]:
    """Names of all contexts, in the order in which they are documented."""
    return list(_REGISTRY)


def table() -> list[dict[str, Any]]:
    """One record per context: everything but its functions, for listings.

    `accepts` says in words what each of the `settings` takes.
    """
    columns = [key for key in Context.__dataclass_fields__ if key not in ("build", "ask")]
    return [
        {key: getattr(context, key) for key in columns} | {"accepts": _accepts(context)}
        for context in _REGISTRY.values()
    ]


def _accepts(context: Context) -> dict[str, str]:
    hints = get_type_hints(context.build) if context.settings else {}
    return {key: _wanted(key, hints[key]) for key in context.settings}


def _check_setting(context: str, key: str, value: Any, hint: Any) -> None:
    # By exact type, so that True is no 1 and a quoted "false" no bool.
    if get_origin(hint) is Literal:
        good = any(value == item and type(value) is type(item) for item in get_args(hint))
    else:
        good = type(value) in (get_args(hint) or (hint,))
        good = good and not (type(value) is int and _counts(key) and value < 1)
    if not good:
        raise ValueError(f"context {context!r}: {key} must be {_wanted(key, hint)}, got {value!r}")


def _wanted(key: str, hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    types = get_args(hint) or (hint,)
    words = "of type " + " or ".join(item.__name__ for item in types)
    return f"{words} and at least 1" if int in types and _counts(key) else words


def _counts(key: str) -> bool:
    """Whole numbers count something, but for seeds."""
    return key != "seed"


def _unknown(what: str, name: str, known: Iterable[str], published: Collection[str] = ()) -> str:
    known = list(known)
    near = difflib.get_close_matches(str(name), known)
    near += [other for other in published if other not in near]
    guess = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"unknown {what}: {name!r}.{guess} Known: {', '.join(known) or 'none'}."
