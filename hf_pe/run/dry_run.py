"""The dry run: sizes after every stage from the config alone, without weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_pe.checkpoints.sentence_source import require_sentence_width
from hf_pe.checkpoints.source import Source
from hf_pe.measure import (
    sketch_size,
)
from hf_pe.model_spec import Sketch
from hf_pe.plans import Plan
from hf_pe.quantize import Packing
from hf_pe.quantizers.bnb import require_plain
from hf_pe.run.identity import AnyRecipe
from hf_pe.run.order import require_stock


@dataclass(frozen=True)
class Outline:
    """What a dry run knows: the original and the plan of every stage, then of every variant."""

    original: Plan
    stages: tuple[Plan, ...]
    variants: dict[str, Plan]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the stages may be worthless for, then the variants, by name."""
        of_variants = [f"variant {n}: {w}" for n, plan in self.variants.items() for w in plan.warnings]
        return (*(warning for plan in self.stages for warning in plan.warnings), *of_variants)


def outline(
    sketch: Sketch, recipes: Sequence[AnyRecipe], variants: Mapping[str, Packing], source: Source | None = None
) -> Outline:
    """The dry run: sizes after every stage, without weights.

    Args:
        sketch: of the original.
        recipes, variants: what to do.
        source: where the original comes from; what lies beside its weights has to fit the result.

    Raises:
        UsageError: the model is quantized already, a target cannot be reached or an architecture cannot be proved; or
            its form is the plug-in's and a step needs a stock one; or a module behind it needs another width.
    """
    require_plain(sketch.config)
    original = Plan(recipe="original", title="original", exact=True, **sketch_size(sketch))
    plans = []
    for recipe in recipes:
        require_stock(sketch, recipe)
        plan, sketch = recipe.outline(sketch)
        if source is not None:
            require_sentence_width(source, sketch.config)
        plans.append(plan)
    for variant in variants.values():
        require_stock(sketch, variant)
    return Outline(original, tuple(plans), {name: v.outline(sketch)[0] for name, v in variants.items()})
