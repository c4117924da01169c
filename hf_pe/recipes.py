"""The recipes, one line each: recipe files, their schema, the command line and the documentation follow from this."""

from typing import Annotated, Any, Union

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema

from hf_pe.backbones import BackboneSwap, SeparableConvolutions
from hf_pe.distill import Distillation
from hf_pe.prune import StructuredPruning
from hf_pe.quantize import BitsAndBytesQuantization, Cast
from hf_pe.recipe import Recipe

RECIPES: dict[str, type[Recipe]] = {
    recipe.kind(): recipe
    for recipe in (
        StructuredPruning,
        BackboneSwap,
        SeparableConvolutions,
        Distillation,
        BitsAndBytesQuantization,
        Cast,
    )
}
"""By name in recipe files, in the order in which they may follow each other."""


class _OneOf:
    """Makes pydantic read a field as one of `RECIPES`, told apart by its key `recipe`."""

    def __init__(self, *, variants: bool) -> None:
        self.variants = variants

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        kinds = tuple(kind for kind in RECIPES.values() if kind.changes == "precision" or not self.variants)
        return handler.generate_schema(Annotated[Union[kinds], Field(discriminator="recipe")])  # noqa: UP007


AnyRecipe = Annotated[Recipe, _OneOf(variants=False)]
"""A recipe in a recipe file."""
AnyVariant = Annotated[Recipe, _OneOf(variants=True)]
"""A recipe that makes a variant of the final model: it only changes the precision of the weights."""
