"""Check the order of recipes and the names of variants before a run."""

import re
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise

from hf_pe.anatomy import custom_modules_of
from hf_pe.errors import UsageError
from hf_pe.model_spec import ModelSpec
from hf_pe.recipe import Recipe
from hf_pe.recipes import RECIPES
from hf_pe.report import MAIN

BEFORE = "before"
"""Name of the original among the measured models, which no variant may have."""
VARIANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Allowed names of variants: each becomes a folder and a branch on the Hub."""


def require_stock(spec: ModelSpec, recipe: Recipe) -> None:
    """Refuse a recipe that needs a stock config after one that leaves custom modules.

    Raises:
        UsageError: The model has custom modules, and `recipe` cannot change such a model.
    """
    if custom_modules_of(spec.config) is not None and not recipe.takes_custom_modules:
        last = recipe.changes == "precision"  # then it cannot come first either
        way_out = "Leave out one of the two." if last else f"Put {recipe.recipe} before separate, or leave out one."
        raise UsageError(
            f"{recipe.recipe}: expected a model that a stock config describes, but an earlier stage (separate) has "
            f"replaced its convolutions by custom modules. {way_out}"
        )


def check_order(recipes: Sequence[Recipe], variants: Collection[str] = ()) -> None:
    """Refuse an order of recipes that cannot work, before any work.

    Raises:
        UsageError: There is no recipe, a recipe follows one that changes the precision, or the name of a variant
            cannot be a folder beside the main result.
    """
    _check_variant_names(variants)
    if not recipes:
        raise UsageError(f"recipes: expected at least one of {', '.join(RECIPES)}; got none.")
    for number, (first, second) in enumerate(pairwise(recipes), 1):
        if first.leaves_precision_changed:
            raise UsageError(_why_not_after(first, second, number))
    last = recipes[-1]
    if last.leaves_precision_changed and variants:
        raise UsageError(
            f"variants ({', '.join(variants)}) are copies of the result in lower precision, and recipe "
            f"{len(recipes)} ({last.recipe}) lowers its precision already. Leave out one of the two."
        )


def _why_not_after(first: Recipe, second: Recipe, number: int) -> str:
    """Return why the recipe `second` cannot follow `first`, recipe `number`, which changes the weights' precision."""
    if first.changes != "precision":
        return (
            f"Recipe {number} ({first.recipe}) leaves its adapters on quantized weights (lora.merge: false), and "
            f"recipe {number + 1} ({second.recipe}) comes after it. Put it last, or leave out merge."
        )
    if first.recipe == second.recipe:
        return (
            f"Recipes {number} and {number + 1} are both {first.recipe}: {second.needs_plain_weights}. Keep one of the "
            "two."
        )
    if second.changes == "precision":
        return (
            f"Recipes {number} ({first.recipe}) and {number + 1} ({second.recipe}) both change the precision of the "
            "weights. Keep one of the two."
        )
    return (
        f"Recipe {number} ({first.recipe}) comes before recipe {number + 1} ({second.recipe}): "
        f"{second.needs_plain_weights}. Put {second.recipe} first."
    )


def _check_variant_names(names: Iterable[str]) -> None:
    """Refuse names of variants whose folder would lie outside the result or replace another part of it."""
    owners = {MAIN: "the main result", BEFORE: "the original"}
    for name in names:
        if VARIANT_NAME.fullmatch(name) is None or ".." in name or name.endswith((".", ".lock")):
            raise UsageError(
                f"variants: '{name}' cannot be the name of a folder and of a branch. Expected letters, digits, '.', "
                "'_' and '-', beginning with a letter or a digit, such as nf4 or half-precision."
            )
        if name.lower() in owners:
            raise UsageError(
                f"variants: '{name}' is the name of {owners[name.lower()]} already (upper and lower case count as "
                "equal). Choose another name, such as nf4."
            )
        owners[name.lower()] = f"the variant '{name}'"


def fitted(recipes: Sequence[Recipe], variants: Iterable[Recipe] = ()) -> list[Recipe]:
    """Return the recipes with defaults that fit the recipes after them, such as widths that a quantizer supports."""
    variants = list(variants)
    return [recipe.before([*recipes[number:], *variants]) for number, recipe in enumerate(recipes, 1)]
