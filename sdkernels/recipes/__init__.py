"""Recipes: published losses as short per-token functions, with their defaults and sources.

A recipe goes into the engine like this:

    recipe = sd.recipes.get("opsd", entry_clip=None)
    loss, stats = sd.token_loss(hidden, head, recipe.loss_fn, targets=ids, teacher=teacher,
                                tokens={"weight": sd.recipes.aggregate(mask_BL)}, **recipe.engine)
"""

# Importing a recipe's module is what registers it.
from sdkernels.gates import gap_scale
from sdkernels.recipes import (
    antisd,
    cepo,
    dasd,
    distill_sampled,
    eopd,
    gkd,
    grpo,
    nll,
    opsd,
    rlcsd,
    rlrt,
    rlsd,
    rosd,
    sdft,
    sdpo,
    srpo,
)
from sdkernels.recipes.inputs import aggregate, group_advantages, skip_first_tokens
from sdkernels.recipes.registry import Recipe, get, names, register, table

__all__ = [
    "Recipe",
    "aggregate",
    "gap_scale",
    "get",
    "group_advantages",
    "names",
    "register",
    "skip_first_tokens",
    "table",
    # the modules of the recipes
    "antisd",
    "cepo",
    "dasd",
    "distill_sampled",
    "eopd",
    "gkd",
    "grpo",
    "nll",
    "opsd",
    "rlcsd",
    "rlrt",
    "rlsd",
    "rosd",
    "sdft",
    "sdpo",
    "srpo",
]
