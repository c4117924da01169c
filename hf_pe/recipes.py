"""Lists the recipes, one line each; recipe files, their schema, the command line and the documentation use the list."""

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
"""The class of each recipe, by its name in recipe files, in the order in which stages may follow each other."""


class _RecipeUnion:
    """Makes pydantic read a field as an instance of the class in `RECIPES` that its key `recipe` names."""

    def __init__(self, *, variants: bool) -> None:
        self.variants = variants

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        kinds = tuple(kind for kind in RECIPES.values() if kind.changes == "precision" or not self.variants)
        return handler.generate_schema(Annotated[Union[kinds], Field(discriminator="recipe")])  # noqa: UP007


AnyRecipe = Annotated[Recipe, _RecipeUnion(variants=False)]
"""A recipe in a recipe file."""
AnyVariant = Annotated[Recipe, _RecipeUnion(variants=True)]
"""A recipe that makes a variant of the final model: it only changes the precision of the weights."""
