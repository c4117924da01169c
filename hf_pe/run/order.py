"""Which recipes may follow each other, and the names of variants."""

import re
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise

from hf_pe.anatomy import custom_modules_of
from hf_pe.errors import UsageError
from hf_pe.model_spec import ModelSpec
from hf_pe.recipe import Recipe
from hf_pe.recipes import RECIPES
from hf_pe.report import MAIN

VARIANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What a variant may be called: its name becomes a folder and a branch on the Hub."""


def require_stock(spec: ModelSpec, recipe: Recipe) -> None:
    """Refuse a recipe that needs a stock config after one that leaves custom modules.

    Raises:
        UsageError: `recipe` cannot follow.
    """
    if custom_modules_of(spec.config) is not None and not recipe.takes_custom_modules:
        last = recipe.changes == "precision"  # then it cannot come first either
        way_out = "Leave out one of the two." if last else f"Put {recipe.recipe} before separate, or leave out one."
        raise UsageError(
            f"{recipe.recipe}: expected a model that a stock config can say; its convolutions were rewritten before "
            f"(separate). {way_out}"
        )


def check_order(recipes: Sequence[Recipe], variants: Collection[str] = ()) -> None:
    """Refuse an order that cannot work, before any work.

    Raises:
        UsageError: no recipe at all, something after quantization or casting, or these twice; a variant whose name
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
            f"variants ({', '.join(variants)}) are packed copies of the result, and recipe step {len(recipes)} "
            f"({last.recipe}) has packed it already. Leave out one of the two."
        )


def _why_not_after(first: Recipe, second: Recipe, number: int) -> str:
    """Return why `second` cannot come after step `number`, which leaves weights that are no plain ones."""
    if first.changes != "precision":
        return (
            f"Recipe step {number} ({first.recipe}) leaves its adapters on packed weights (lora.merge: false), and "
            f"step {number + 1} ({second.recipe}) comes after it. Put it last, or leave out merge."
        )
    if first.recipe == second.recipe:
        return f"Recipe steps {number} and {number + 1} both {first.recipe}: {second.needs_plain_weights}. Keep one."
    if second.changes == "precision":
        return f"Recipe steps {number} ({first.recipe}) and {number + 1} ({second.recipe}): keep one of the two."
    return (
        f"Recipe step {number} ({first.recipe}) comes before step {number + 1} ({second.recipe}): "
        f"{second.needs_plain_weights}. Put {second.recipe} first."
    )


def _check_variant_names(names: Iterable[str]) -> None:
    """Refuse names that would write outside the result, or over another part of it."""
    taken = {MAIN: "the main result", "before": "the original"}
    for name in names:
        if VARIANT_NAME.fullmatch(name) is None or ".." in name or name.endswith((".", ".lock")):
            raise UsageError(
                f"variants: '{name}' cannot be the name of a folder and of a branch. Expected letters, digits, '.', "
                "'_' and '-', beginning with a letter or a digit, such as nf4 or half-precision."
            )
        if name.lower() in taken:
            raise UsageError(
                f"variants: '{name}' is the name of {taken[name.lower()]} already, upper or lower case alike. "
                "Choose another name, such as nf4."
            )
        taken[name.lower()] = f"the variant '{name}'"


def fitted(recipes: Sequence[Recipe], variants: Iterable[Recipe] = ()) -> list[Recipe]:
    """Return the recipes with defaults that fit those after them, such as widths that a quantizer can pack."""
    variants = list(variants)
    return [recipe.before([*recipes[number:], *variants]) for number, recipe in enumerate(recipes, 1)]
