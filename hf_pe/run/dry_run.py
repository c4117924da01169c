"""Compute the sizes of a model after every stage from its config alone, without weights: the dry run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.processor import load_named_processor, pixels_from
from hf_pe.checkpoints.sentence_source import require_sentence_width
from hf_pe.checkpoints.source import Source
from hf_pe.measure import spec_sizes
from hf_pe.model_spec import ModelSpec
from hf_pe.plans import Plan
from hf_pe.quantizers.registry import require_plain
from hf_pe.recipe import Recipe
from hf_pe.run.order import check_order, fitted, require_stock
from hf_pe.tasks import Task
from hf_pe.tasks.infer import find_task


@dataclass(frozen=True)
class PreparedRun:
    """Hold the checked arguments of a run before data are read and weights are loaded.

    Attributes:
        source: Source of the original.
        config: Config of the original.
        model_class: Class of the original.
        task: The named task, or the one of the model's class.
        recipes: The recipes, with defaults that fit the recipes after them.
        variants: The recipes of the variants, by name.
        processor: The processor that the user gave or named; None for the model's own, which is not loaded yet.
        dry_run: Sizes after each stage.
    """

    source: Source
    config: PretrainedConfig
    model_class: type[PreTrainedModel]
    task: Task
    recipes: list[Recipe]
    variants: dict[str, Recipe]
    processor: Any
    dry_run: "DryRun"


def prepare_run(
    source: Source,
    recipes: Sequence[Recipe],
    variants: Mapping[str, Recipe],
    *,
    task: str | Task | None = None,
    processor: Any = None,
    live: PreTrainedModel | None = None,
) -> PreparedRun:
    """Check a run and compute its sizes, without data and without weights.

    Args:
        source: Source of the original.
        recipes: Recipes of the run.
        variants: Recipes of the variants, by name.
        task: A name of `hf_pe.tasks.TASKS` or a Task; by default the task of the model's class.
        processor: A loaded processor, or a name that it is loaded from; None for the model's own.
        live: The original, where it is loaded already.

    Raises:
        UsageError: See `check_order`, `find_task` and `dry_run`.
    """
    fitting = fitted(recipes, variants.values())
    check_order(fitting, variants)
    config = live.config if live is not None else load_config(source)
    the_task = find_task(task, source, config)
    model_class = type(live) if live is not None else class_for(config, the_task.auto_class)
    if isinstance(processor, (str, Path)):
        processor = load_named_processor(
            str(processor), the_task.processor_class, trust_remote_code=source.trust_remote_code
        )
    spec = ModelSpec(config=config, model_class=model_class, pixels=pixels_from(source, model_class, processor))
    sizes = dry_run(spec, fitting, variants, source)
    return PreparedRun(source, config, model_class, the_task, fitting, dict(variants), processor, sizes)


@dataclass(frozen=True)
class DryRun:
    """Hold the sizes that a dry run computed: of the original, after every stage, and of every variant."""

    original: Plan
    stages: tuple[Plan, ...]
    variants: dict[str, Plan]

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings of all stages, then those of the variants with their names."""
        variant_warnings = [f"variant {n}: {w}" for n, plan in self.variants.items() for w in plan.warnings]
        return (*(warning for plan in self.stages for warning in plan.warnings), *variant_warnings)


def dry_run(
    spec: ModelSpec, recipes: Sequence[Recipe], variants: Mapping[str, Recipe], source: Source | None = None
) -> DryRun:
    """Compute the sizes after every stage without weights.

    Args:
        spec: The original without weights.
        recipes: Recipes of the run.
        variants: Recipes of the variants, by name.
        source: Source of the original, whose side files (a dense layer after the model) have to fit the result.

    Raises:
        UsageError: The model is quantized already, a budget cannot be met, an axis cannot be verified, a recipe needs a
            stock config and the model has custom modules, or a module after the model needs another hidden width.
    """
    require_plain(spec.config)
    original = Plan(recipe="original", title="original", exact=True, **spec_sizes(spec))
    plans = []
    for recipe in recipes:
        require_stock(spec, recipe)
        plan, spec = recipe.dry_run(spec)
        if source is not None:
            require_sentence_width(source, spec.config)
        plans.append(plan)
    for variant in variants.values():
        require_stock(spec, variant)
    return DryRun(original, tuple(plans), {name: v.dry_run(spec)[0] for name, v in variants.items()})
