"""The registry: a recipe is a per-token loss function, its defaults and its source, nothing else.

What all recipes share is done here once: the product with `tok.weight`, the check that the
per-token inputs are there, the detaching of those inputs, and the shielding of tokens whose weight
is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sdkernels.recipes.settings import Setting, published_as, resolve, unknown
from sdkernels.recipes.shielded import Shielded

LossFn = Callable[[Any, Any], Tensor]

# What a recipe may need from a trainer. `old_logp` is used where it is given; a recipe that lists
# it takes its absence to mean that the rollouts come from the current policy.
NEEDS = ("teacher", "rewards", "group", "old_logp", "gate")
# Those of a recipe that adds a teacher to a verifier's advantage.
ANCHORED = frozenset({"teacher", "rewards", "group", "old_logp"})

HOW_TO_MAKE = {
    "weight": "sd.recipes.aggregate(mask_BL, ...)",
    "adv": "sd.recipes.group_advantages(rewards), one value repeated over the tokens of a sequence",
    "success": "1 where the sequence was verified correct, else 0",
    "gap_scale": "sd.recipes.gap_scale(teacher_logp_BL - logp_BL, mask_BL)",
    "second_teacher_logp": "log-prob of the sampled token under the contrasting teacher (a mean of "
    "several: logsumexp_k - log K), NaN in sequences that have none",
}

# Per-token inputs that a recipe may read and what their absence means. `recipes.inputs` has more.
OPTIONAL = {
    "old_logp": "log-prob under the policy that sampled; without it: the current policy sampled",
    "signal": "1 where the teacher saw a context, else 0; without it: everywhere",
    "strength": "factor in [0, 1] that a schedule or gate puts on this step; without it: 1",
    "suffix": "0 before the first error of a wrong response, else 1; without it: 1",
    "batch_mean": "mean of recipe.batch_quantity over the batch; without it: not normalised",
}


@dataclass(frozen=True)
class Body:
    """What a recipe's factory returns: the loss of one configuration and what it has to be fed.

    Attributes:
        per_token: `(s, tok) -> [C]`, not yet weighted.
        needs: subset of `NEEDS`.
        inputs: the per-token tensors it cannot do without, besides `weight`.
        optional: those of `OPTIONAL` that it reads where they are given.
        engine: the keywords that `token_loss` needs for the statistics it reads.
        schedule: optimiser step (from 0) -> `strength`; None: constant.
        batch_quantity: `(s, tok) -> (value [C], which tokens count [C])`; its mean, by `weight`,
            over all tokens of an optimisation step is `batch_mean`. It reads statistics of the
            teacher only.
        anchored: sequences for which the teacher has no context stay in the loss (`signal` 0), with
            what the recipe makes of their verifier's advantage, instead of being left out.
        skips_failed_groups: groups without any success are left out.
        context: name and settings of the context that the source trains with, where the recipe
            makes little sense with another.
        gates: kinds of gate it can use (names of `sdkernels train --gate`), the default first.
        direction: `(s, tok) -> [C]`: the direction in which it really moved each token, for logs.
        entropy_ceiling: `strength` is 0 while the student's mean entropy is above this multiple of
            what it was in the first steps.
    """

    per_token: LossFn
    needs: frozenset[str] = frozenset()
    inputs: frozenset[str] = frozenset()
    engine: dict[str, Any] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    schedule: Callable[[int], float] | None = None
    batch_quantity: Callable[[Any, Any], tuple[Tensor, Tensor]] | None = None
    anchored: bool = False
    skips_failed_groups: bool = False
    context: tuple[str, dict[str, Any]] | None = None
    gates: tuple[str, ...] = ()
    direction: Callable[[Any, Any], Tensor] | None = None
    entropy_ceiling: float | None = None


@dataclass(frozen=True)
class Recipe:
    """One configured recipe, made by `get`.

    Attributes:
        name: what `get` knows it by.
        loss_fn: `(s, tok) -> [C]` for `token_loss`, already multiplied by `tok.weight`.
        engine: keywords for `token_loss`, such as `{"jsd_beta": 0.5}`.
        needs: what a trainer must provide, a subset of `NEEDS`.
        inputs: the names that must be in `tokens=`.
        optional: names that may be in `tokens=`; what their absence means stands in `OPTIONAL`.
        config: the settings in force; None for one that has no effect in this configuration.
        defaults: the settings' defaults.
        summary: one line.
        source: where the formula and the defaults come from.
        schedule, batch_quantity, anchored, skips_failed_groups, context, gates, direction,
            entropy_ceiling: what a trainer has to know; see `Body`.
    """

    name: str
    loss_fn: LossFn
    engine: dict[str, Any]
    needs: frozenset[str]
    inputs: frozenset[str]
    optional: frozenset[str]
    config: dict[str, Any]
    defaults: dict[str, Any]
    summary: str
    source: str
    schedule: Callable[[int], float] | None
    batch_quantity: Callable[[Any, Any], tuple[Tensor, Tensor]] | None
    anchored: bool
    skips_failed_groups: bool
    context: tuple[str, dict[str, Any]] | None
    gates: tuple[str, ...]
    direction: Callable[[Any, Any], Tensor] | None
    entropy_ceiling: float | None


@dataclass(frozen=True)
class _Entry:
    factory: Callable[..., Body]
    settings: Mapping[str, Setting]
    summary: str
    source: str

    @property
    def defaults(self) -> dict[str, Any]:
        return {name: setting.default for name, setting in self.settings.items()}


_REGISTRY: dict[str, _Entry] = {}


def register(
    name: str, *, summary: str, source: str, settings: Mapping[str, Setting] | None = None
) -> Callable[[Callable[..., Body]], Callable[..., Body]]:
    """Decorator that enters a factory `(**settings) -> Body` under `name`."""

    def enter(factory: Callable[..., Body]) -> Callable[..., Body]:
        if name in _REGISTRY:
            raise ValueError(f"recipe {name!r} is registered twice")
        _REGISTRY[name] = _Entry(factory, dict(settings or {}), summary, source)
        return factory

    return enter


def get(name: str, **cfg: Any) -> Recipe:
    """The recipe `name` with its defaults overridden by `cfg`.

    Raises:
        ValueError: an unknown name or setting (the message gives the nearest known ones, and those
            of the paper that is named), or a value that the setting does not accept or that has no
            effect in this configuration.
    """
    if name not in _REGISTRY:
        sources = {known: entry.source for known, entry in _REGISTRY.items()}
        raise ValueError(unknown("recipe", name, _REGISTRY, published_as(name, sources)))
    entry = _REGISTRY[name]
    config = resolve(name, entry.settings, cfg)
    body = entry.factory(**config)
    inputs = body.inputs | {"weight"}
    return Recipe(
        name=name,
        loss_fn=_weighted(name, body.per_token, inputs),
        engine=dict(body.engine),
        needs=body.needs,
        inputs=inputs,
        optional=body.optional,
        config=config,
        defaults=entry.defaults,
        summary=entry.summary,
        source=entry.source,
        schedule=body.schedule,
        batch_quantity=body.batch_quantity,
        anchored=body.anchored,
        skips_failed_groups=body.skips_failed_groups,
        context=body.context,
        gates=body.gates,
        direction=body.direction,
        entropy_ceiling=body.entropy_ceiling,
    )


def names() -> list[str]:
    """All recipe names, sorted."""
    return sorted(_REGISTRY)


def table() -> list[dict[str, Any]]:
    """One row a recipe for `sdkernels recipes`.

    Keys: `name`, `summary`, `source`, `needs`, `inputs`, `optional`, `context` (the one it brings,
    in words), `gates`, and `settings`, a list of `name`, `default`, `accepts` and `doc` (meaning
    and unit).
    """
    rows = []
    for name in names():
        entry = _REGISTRY[name]
        recipe = get(name)
        rows.append(
            {
                "name": name,
                "summary": entry.summary,
                "needs": [need for need in NEEDS if need in recipe.needs],
                "inputs": sorted(recipe.inputs),
                "optional": [key for key in OPTIONAL if key in recipe.optional],
                "context": _context_words(recipe.context),
                "gates": list(recipe.gates),
                "settings": [
                    {"name": key, "default": s.default, "accepts": s.accepted, "doc": s.doc}
                    for key, s in entry.settings.items()
                ],
                "source": entry.source,
            }
        )
    return rows


def _context_words(context: tuple[str, dict[str, Any]] | None) -> str:
    if context is None:
        return "any"
    settings = ", ".join(f"{key}={value}" for key, value in context[1].items())
    return context[0] + (f" ({settings})" if settings else "")


def _weighted(name: str, per_token: LossFn, inputs: frozenset[str]) -> LossFn:
    def loss_fn(s: Any, tok: Any) -> Tensor:
        missing = [key for key in sorted(inputs) if not hasattr(tok, key)]
        if missing:
            how = "; ".join(f"{key}: {HOW_TO_MAKE[key]}" for key in missing if key in HOW_TO_MAKE)
            raise ValueError(
                f"recipe {name!r} needs tokens[{missing[0]!r}]"
                + (f" (missing: {', '.join(missing)})" if len(missing) > 1 else "")
                + (f". {how}" if how else "")
            )
        weight_C = tok.weight.detach()
        keep_C = weight_C != 0
        inputs_of_kept = Shielded(tok, keep_C, fill=1, live=())
        loss_C = per_token(Shielded(s, keep_C), inputs_of_kept)
        return weight_C * loss_C

    return loss_fn
