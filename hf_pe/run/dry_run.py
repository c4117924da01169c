"""The dry run: sizes after every stage from the config alone, without weights."""

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
    """What is known of a run before data are read and weights are loaded.

    Attributes:
        source, config, model_class: of the original.
        task: as named, or inferred from the model's class.
        recipes, variants: with defaults that fit those after them.
        processor: the one that was given or loaded by its name; None: the model's own, which is not loaded yet.
        dry_run: sizes after each stage.
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
        source: of the original.
        recipes, variants: what to do.
        task: a name of `hf_pe.tasks.TASKS` or a Task; default: by the model's class.
        processor: a loaded one, or where it is loaded from; None: the model's own.
        live: the original, where it is loaded already.

    Raises:
        UsageError: see `check_order`, `find_task` and `dry_run`.
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
    """What a dry run knows: the original and the plan of every stage, then of every variant."""

    original: Plan
    stages: tuple[Plan, ...]
    variants: dict[str, Plan]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the stages may be worthless for, then the variants, by name."""
        of_variants = [f"variant {n}: {w}" for n, plan in self.variants.items() for w in plan.warnings]
        return (*(warning for plan in self.stages for warning in plan.warnings), *of_variants)


def dry_run(
    spec: ModelSpec, recipes: Sequence[Recipe], variants: Mapping[str, Recipe], source: Source | None = None
) -> DryRun:
    """The dry run: sizes after every stage, without weights.

    Args:
        spec: of the original.
        recipes, variants: what to do.
        source: where the original comes from; what lies beside its weights has to fit the result.

    Raises:
        UsageError: the model is quantized already, a target cannot be reached or an architecture cannot be proved; or
            its form is the plug-in's and a step needs a stock one; or a module behind it needs another width.
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
