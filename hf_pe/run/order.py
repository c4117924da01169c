"""Which recipes may follow each other, and the names of variants."""

import re
from collections.abc import Collection, Iterable, Sequence

from hf_pe.anatomy import form_of
from hf_pe.distill import Distillation
from hf_pe.errors import UsageError
from hf_pe.model_spec import Sketch
from hf_pe.prune import StructuredPruning
from hf_pe.report import MAIN
from hf_pe.run.identity import AnyRecipe

VARIANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What a variant may be called: its name becomes a folder and a branch on the Hub."""


def require_stock(sketch: Sketch, recipe: AnyRecipe) -> None:
    """Refuse a recipe that needs a stock config after one that leaves custom modules.

    Raises:
        UsageError: `recipe` cannot follow.
    """
    if form_of(sketch.config) is not None and recipe.recipe in ("prune", "swap", "quantize"):
        raise UsageError(
            f"{recipe.recipe}: expected a model that a stock config can say; its convolutions were rewritten before "
            f"(separate). Put {recipe.recipe} before separate, or leave one of the two."
        )


def check_order(recipes: Sequence[AnyRecipe], variants: Collection[str] = ()) -> None:
    """Refuse an order that cannot work, before any work.

    Raises:
        UsageError: no recipe at all, something after quantization or casting, or these twice; a variant whose name
            cannot be a folder beside the main result.
    """
    _check_variant_names(variants)
    if not recipes:
        raise UsageError("recipes: expected at least one of prune, swap, separate, distil, quantize; got none.")
    packed = 0
    for number, step in enumerate(recipes, 1):
        first = recipes[packed - 1].recipe if packed else None
        if first == "distil":
            raise UsageError(
                f"Recipe step {packed} (distil) leaves its adapters on packed weights (lora.merge: false), and step "
                f"{number} ({step.recipe}) comes after it. Put it last, or leave out merge."
            )
        if first == step.recipe:
            raise UsageError(
                f"Recipe steps {packed} and {number} both {first}: packed weights cannot be packed again. Keep one."
            )
        if first and step.recipe in ("quantize", "cast"):
            raise UsageError(f"Recipe steps {packed} ({first}) and {number} ({step.recipe}): keep one of the two.")
        if first:
            reason = {
                "prune": "a packed model cannot be cut",
                "swap": "the backbone of a packed model cannot be exchanged",
                "separate": "packed convolutions cannot be rewritten",
                "distil": "packed weights cannot be trained",
            }[step.recipe]
            raise UsageError(
                f"Recipe step {packed} ({first}) comes before step {number} ({step.recipe}): {reason}. "
                f"Put {step.recipe} first."
            )
        ends = isinstance(step, Distillation) and step.ends_packed
        packed = number if ends or step.recipe in ("quantize", "cast") else 0
    if packed and variants:
        raise UsageError(
            f"variants ({', '.join(variants)}) are packed copies of the result, and recipe step {packed} "
            f"({recipes[packed - 1].recipe}) has packed it already. Leave out one of the two."
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


def fit_multiples(recipes: Sequence[AnyRecipe], *, quantized_after: bool = False) -> list[AnyRecipe]:
    """Round pruned widths to 64 where quantization follows (bitsandbytes' block), else to 8, unless given."""
    found: list[AnyRecipe] = []
    for number, step in enumerate(recipes):
        packed = quantized_after or any(later.recipe == "quantize" for later in recipes[number:])
        if isinstance(step, StructuredPruning) and step.multiple is None:
            step = step.model_copy(update={"multiple": 64 if packed else 8})
        found.append(step)
    return found
