"""Structured pruning as a recipe: choose units, cut them out, repair what is left."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.anatomy import Axis, discover, kinds_of, names_depth
from hf_pe.anatomy.generation_config import generation_changes, generation_losses
from hf_pe.calibration.coverage import reached, require_passage
from hf_pe.errors import UsageError
from hf_pe.measure import judge, spec_sizes
from hf_pe.model_spec import ModelSpec
from hf_pe.plans import Plan, SizeChange
from hf_pe.prune.basis.attention_heads import turned
from hf_pe.prune.basis.residual import rotated, untied_spec
from hf_pe.prune.choose import ChoiceSettings, choose
from hf_pe.prune.criteria import CRITERIA
from hf_pe.prune.refit.experts import correct_
from hf_pe.prune.refit.least_squares import refit_
from hf_pe.prune.refit.norm_warnings import rescaling_warnings
from hf_pe.prune.refit.norms import rescale_norms_
from hf_pe.prune.refit.sequential import maps_in_order, repair_in_order_
from hf_pe.prune.sizes.allowed import (
    amount,
    final_sizes,
    kept_sizes,
    ladder,
    one_or_all,
    removed,
    resized_spec,
    sizes_in_turn,
    snapped,
)
from hf_pe.prune.sizes.budget import Target, above_floor
from hf_pe.prune.sizes.costs import Costs
from hf_pe.prune.sizes.layers import last_removed
from hf_pe.prune.sizes.search import Setting, alone, by_loss, crossed, first_within, in_step, widest
from hf_pe.prune.sizes.sensitivity import least_loss, tried
from hf_pe.prune.statistics.cached import moments_key, moments_of
from hf_pe.recipe import Recipe, StageState
from hf_pe.surgery import cut
from hf_pe.tasks import TaskData
from hf_pe.verify.equivalence import require_generation, require_proof

Amount = Annotated[int | float, BeforeValidator(amount)]
"""A share (float, 0.5) or a number of units (int, 4)."""


REAP = "https://arxiv.org/abs/2510.13999"
SLICING = "https://arxiv.org/abs/2401.15024"
REPAIRS = {"least_squares": ", least squares", "in_order": ", least squares block by block in order", "none": ""}

DEPTH_PAPERS = {"influence": "https://arxiv.org/abs/2403.03853", "greedy": "https://arxiv.org/abs/2402.09025"}


class StructuredPruning(Recipe):
    """Remove FFN units, heads, hidden width, experts and layers; the result is a smaller stock model.

    Depth is chosen by `depth`, experts by REAP, the rest by `criterion`; each axis is proved on a tiny model
    of the same architecture before anything is cut.
    """

    tag = "pruned"
    changes = "structure"
    needs_plain_weights = "a packed model cannot be cut"
    takes_custom_modules = False

    recipe: Literal["prune"] = "prune"
    keep: dict[str, Amount] = Field(
        default_factory=dict, description="axis to what remains: a number of units (int) or a share (float, 1.0 is all)"
    )
    target: Target | None = Field(None, description="what the model may cost; the sizes of `axes` follow")
    floor: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the metric that must stay (0.97): `axes` give way as far as it does, found by search",
    )
    axes: tuple[str, ...] = Field(
        ("ffn",),
        min_length=1,
        description="what gives way to target or floor; where there are several, each is cut alone on calibration "
        "data first, and what costs least quality for what it saves goes first",
    )
    criterion: Literal[
        "magnitude_l1",
        "magnitude_l2",
        "activation",
        "activation_weight",
        "taylor",
        "fisher",
        "obs",
        "surgeon",
        "random",
    ] = "obs"
    repair: Literal["least_squares", "in_order", "none"] = Field(
        "least_squares",
        description="least_squares: each map towards the output it had; in_order: then block after block (the FFN, and "
        "attention where heads were cut) towards the original's state at that depth, which also takes over what "
        "removed layers did",
    )
    depth: Literal["influence", "greedy"] = Field(
        "influence",
        description="which layers go: those that turn the hidden states least, or one by one the one whose absence "
        "costs the model's answers least (better, for a forward pass over at most 64 rows, or 4,096 tokens, per layer "
        "and round)",
    )
    hidden: Literal["selection", "rotation"] = Field(
        "selection",
        description="how hidden width goes: coordinates by the criterion, or the least principal components after a "
        "rotation of the residual stream (RMS norms only; unties the embeddings)",
    )
    multiple: int | None = Field(
        None, ge=1, description="widths are rounded up to it; default 8, 64 before quantization"
    )
    tensor_parallel: int = Field(
        1, ge=1, description="devices that will share each layer: heads, and multiples of widths, divide evenly"
    )

    @model_validator(mode="after")
    def _something_to_do(self) -> "StructuredPruning":
        if not self.keep and self.target is None and self.floor is None:
            raise ValueError(
                "prune needs 'keep' (such as keep: {ffn: 0.5}), 'target' (such as target: {parameters: 0.5}) or 'floor'"
            )
        unclear = one_or_all(self.keep)
        if unclear:
            raise ValueError(f"keep.{unclear}")
        if self.target is not None and self.floor is not None:
            raise ValueError("prune takes either 'target' or 'floor': one of the two decides how much goes")
        return self

    def dry_run(self, spec: ModelSpec) -> tuple[Plan, ModelSpec]:
        """Sizes from the config alone, as far as they follow from it; proves every axis that may be cut."""
        anatomy = discover(spec.config, spec.model_class)
        axes = {axis.name: axis for axis in anatomy.axes}
        setting, notes, exact = self._from_config(spec)
        target = removed(spec, setting)
        free = [axis.name for rungs in self._ladders(spec) for axis in anatomy.axes if axis.name in rungs[0]]
        if not target and not free:
            raise UsageError("prune: nothing would be removed; give keep less than the model has, such as ffn: 0.5.")
        for name in dict.fromkeys((*target, *free)):
            require_proof(spec.config, spec.model_class, axes[name])
        layers = {name: last_removed(spec, axes[name], size) for name, size in target.items() if names_depth(name)}
        notes = (*notes, *require_generation(spec.config, spec.model_class, layers))
        for name in target:
            needs, is_scored = CRITERIA[self.criterion].needs, axes[name].kind.choice == "criterion"
            read = any(slot.consumes and slot.layout.share == 1 for slot in axes[name].slots)
            if needs and is_scored and not read:
                raise UsageError(
                    f"prune.criterion: {self.criterion} looks at linear maps that read the units, and what reads "
                    f"'{name}' are convolutions. Choose magnitude_l2."
                )
            if axes[name].in_experts and "gradients" in CRITERIA[self.criterion].needs:
                raise UsageError(
                    f"prune.criterion: {self.criterion} needs gradients inside the experts, which share one tensor. "
                    "Choose obs (the default), activation_weight or a magnitude."
                )
        if self.repair == "in_order" and not any(maps_in_order(axis) for axis in anatomy.named("ffn")):
            raise UsageError(
                "prune.repair: in_order moves the output of each FFN, and this model has none outside its experts. "
                "Choose least_squares."
            )
        in_turn, after = sizes_in_turn(spec, target)
        if self.hidden == "rotation" and _narrows_stream(target):
            after = untied_spec(after)
            notes = (*notes, "principal components of the hidden width; the output head has weights of its own")
        left = final_sizes(spec, after, target)
        for name in (name for name in target if not axes[name].kind.is_residual and left[name] < in_turn[name]):
            others = f"{left[name]} of {axes[name].size} units are left, since more of them go with the hidden width"
            notes = (*notes, f"{name}: {others}")
        for name in (name for name in target if axes[name].kind.is_residual):
            notes = (*notes, f"hidden states, and embeddings made of them, are {target[name]} wide then")
        unscaled = [w for name in target if self.repair == "none" for w in rescaling_warnings(spec, axes[name])]
        criterion, choices = CRITERIA[self.criterion], {axes[name].kind.choice for name in target}
        plan = self.planned(
            title=f"structured pruning ({criterion.title}{REPAIRS[self.repair]})",
            sizes=tuple(SizeChange(axis=n, before=axes[n].size, after=s) for n, s in left.items()),
            exact=exact,
            notes=(*notes, "which units are kept is decided from weights and data"),
            warnings=tuple(unscaled),
            references=(
                *([criterion.reference] if criterion.reference else []),
                *([DEPTH_PAPERS[self.depth]] if "depth" in choices else []),
                *([REAP] if "routing" in choices else []),
                *([SLICING] if self.hidden == "rotation" and _narrows_stream(target) else []),
            ),
            **spec_sizes(after),
        )
        return plan, after

    def before(self, later: Sequence[Recipe]) -> "StructuredPruning":
        """Return the recipe with widths that are multiples of what later recipes need, of 8 at least, unless given."""
        if self.multiple is not None:
            return self
        return self.model_copy(update={"multiple": max([8, *(recipe.width_multiple for recipe in later)])})

    def plan(self, state: StageState) -> Plan:
        """Choose sizes that the config leaves open, then the kept units, axis by axis, on copies of the model.

        Raises:
            UsageError: even the smallest cut misses the floor, or even the largest misses the target.
        """
        if self.target is not None or self.floor is not None:
            setting, notes = self._from_data(state)
            plan = self._with_sizes(state.spec, setting).plan(state)
            return plan.model_copy(update={"notes": (*notes, *plan.notes)})
        spec = state.spec
        plan, _ = self.dry_run(spec)
        kept: dict[str, dict[str, list[int]]] = {}
        losses: list[str] = []
        sizes, _ = sizes_in_turn(spec, kept_sizes(spec, self.keep, *self._steps))
        for name, size in sizes.items():
            axis = _axis(state.model, name)
            if size == axis.size:  # others took along what was to go
                continue
            kept[axis.name] = choose(self._choice_settings, state, axis, size)
            losses += _generation_losses(state.model, axis, kept[axis.name])
            if name != [*sizes][-1]:  # the next axis is judged once this one is cut
                state = replace(state, model=cut(state.model, axis, kept[axis.name]))
        return plan.model_copy(update={"kept": kept, "notes": tuple(losses)})

    @property
    def _choice_settings(self) -> ChoiceSettings:
        return ChoiceSettings(self.criterion, self.depth, self.hidden == "rotation")

    @property
    def _steps(self) -> tuple[int, int]:
        """What widths are multiples of on each device, and how many devices share them."""
        return self.multiple or 8, self.tensor_parallel

    def _ladders(self, spec: ModelSpec) -> list[list[Setting]]:
        """The sizes that each of `axes` can take; none where `keep` says all."""
        if self.target is None and self.floor is None:
            return []
        fixed = kept_sizes(spec, self.keep, *self._steps)
        if self.hidden == "rotation" and _narrows_stream((*fixed, *self.axes)) and _tied(spec):
            raise UsageError(
                "prune.hidden: rotation unties this model's embeddings, which a target or floor cannot foresee. Choose "
                "hidden: selection, or give all sizes in keep."
            )
        found = [ladder(spec, name, *self._steps) for name in self.axes]
        for name, rungs in zip(self.axes, found, strict=True):
            if any(axis in fixed for axis in rungs[0]):
                raise UsageError(f"prune.axes: '{name}' would follow the target, but prune.keep fixes it; drop one.")
        return found

    def _from_config(self, spec: ModelSpec) -> tuple[Setting, tuple[str, ...], bool]:
        """Sizes, what to say about them, and whether they are final."""
        fixed = kept_sizes(spec, self.keep, *self._steps)
        ladders = self._ladders(spec)
        told = snapped(spec, self.keep, fixed)
        if self.floor is not None:
            far = f"cut along {', '.join(self.axes)} as far as {self.floor:.0%} of the metric stays"
            return fixed, (*told, far), False
        if self.target is None:
            return fixed, told, True
        note = f"{self.target}, along {', '.join(self.axes)}"
        if self.target.measured():
            return fixed, (*told, f"{note}; decided by measuring"), False
        path = [fixed | setting for setting in in_step(ladders)]
        return self.target.within(spec, path, Costs(spec)), (*told, note), len(ladders) == 1

    def _with_sizes(self, spec: ModelSpec, setting: Setting) -> "StructuredPruning":
        """The recipe with all sizes in `keep`."""
        sizes, _ = sizes_in_turn(spec, setting)
        return self.model_copy(update={"keep": sizes, "target": None, "floor": None})

    def _from_data(self, state: StageState) -> tuple[Setting, tuple[str, ...]]:
        """The sizes, and what is expected of them."""
        model, data, spec = state.model, state.data, state.spec
        fixed = kept_sizes(spec, self.keep, *self._steps)
        ladders = self._ladders(spec)
        for axis in (_axis(model, name) for rungs in ladders for name in rungs[0]):
            require_passage(reached(model, axis, data), axis)
        target = self.target or Target(parameters=1.0)
        costs = Costs(spec, target.batch, model.device)

        def made(setting: Setting) -> PreTrainedModel:
            return self._with_sizes(spec, fixed | setting).carry_out(state).model

        def cost(setting: Setting) -> float:
            return max(target.overrun(costs, resized_spec(spec, fixed | setting)).values())

        path = in_step(ladders)
        if len(ladders) > 1:
            path = by_loss(ladders, tried(model, data, ladders, made, cost))
        if self.floor is None:
            if len(ladders) > 1:  # what each axis loses alone says little of them together: the ends are compared
                ways = (path, in_step(ladders), *alone(ladders), *([] if target.measured() else crossed(ladders)))
                ends = widest([end for way in ways if (end := first_within(way, cost)) is not None])
                path = [least_loss(model, data, ends, made), path[-1]] if ends else path
            found = target.within(spec, [fixed | setting for setting in path], costs)
            return found, (str(target), *target.predicted(costs, resized_spec(spec, found)))

        def metric(setting: Setting) -> float:
            return judge(made(setting), data).scores()[data.task.metric]

        dense = judge(model, data).scores()[data.task.metric]
        path = [fixed | setting for setting in path]
        found, note = above_floor(self.floor, data.task, dense, path, metric)
        return found, (note,)

    def apply(self, state: StageState, plan: Plan) -> StageState:
        """Cut what the plan says, in its order, and repair the maps that read removed units."""
        if plan.kept is None:
            raise ValueError("The plan has no kept units yet: make it with plan(state).")
        model, data, statistics = state.model, state.data, state.statistics
        original, narrower = model, False
        counts = {name: len(next(iter(kept.values()))) for name, kept in plan.kept.items()}
        spec = resized_spec(state.spec, counts)
        _require_planned(model, spec.config, plan)
        layers = {name: kept for name, kept in plan.kept.items() if names_depth(name)}
        require_generation(model.config, type(model), layers)
        for name, kept in plan.kept.items():
            axis = _axis(model, name)
            require_proof(model.config, type(model), axis, kept)
            if axis.kind.is_residual:  # comes last: then the blocks of the original are no measure any more
                if not narrower:
                    self._repair_in_order_(model, original, plan.kept, data)
                narrower = True
                model = rotated(model, axis, data) if self.hidden == "rotation" else model
                if axis.narrows_heads:
                    weighed = next(moments_of(replace(state, model=model), axis, weighed=True))
                    model, moments = turned(model, axis, weighed)
                    statistics.put(model, moments_key(axis, weighed=True), moments)
            smaller = cut(model, axis, kept)
            if self.repair != "none" and any(slot.consumes for slot in axis.slots):
                for seen in moments_of(replace(state, model=model), axis, weighed=True):
                    refit_(smaller, model, axis, kept, seen)
            if axis.kind.choice == "routing" and self.repair != "none":
                correct_(smaller, model, axis, data)
            if self.repair != "none":
                rescale_norms_(smaller, model, axis, kept, data)
            model = smaller
        if not narrower:
            self._repair_in_order_(model, original, plan.kept, data)
        _require_planned(original, model.config, plan)
        return state.with_model(model)

    def _repair_in_order_(
        self,
        model: PreTrainedModel,
        original: PreTrainedModel,
        kept: Mapping[str, dict[str, list[int]]],
        data: TaskData,
    ) -> None:
        if self.repair == "in_order" and model is not original:
            layers = {stack: left for name in kept if names_depth(name) for stack, left in kept[name].items()}
            anatomy = discover(model.config, type(model))
            heads = [axis for axis in anatomy.axes if axis.name in kept and axis.kind.is_heads]
            for axis in anatomy.named("ffn"):
                repair_in_order_(model, original, axis, layers, data, heads)


def _generation_losses(model: PreTrainedModel, axis: Axis, kept: dict[str, list[int]]) -> tuple[str, ...]:
    """Return sentences on what the model's generation config can no longer say after a cut."""
    if not model.can_generate():
        return ()
    values = vars(model.generation_config)
    return generation_losses(values, generation_changes(values, model.config, axis, kept))


def _require_planned(original: PreTrainedModel, config: PretrainedConfig, plan: Plan) -> None:
    """Refuse a config that does not say the sizes of the plan.

    Raises:
        ValueError: a size differs.
    """
    before = ModelSpec(config=original.config, model_class=type(original))
    left = final_sizes(before, replace(before, config=config), [change.axis for change in plan.sizes])
    for change in plan.sizes:
        if left[change.axis] != change.after:
            raise ValueError(
                f"The plan leaves {change.after} units of '{change.axis}', its kept units {left[change.axis]}. Make "
                "the plan again, or let both say the same."
            )


def _axis(model: PreTrainedModel, name: str) -> Axis:
    return next(axis for axis in discover(model.config, type(model)).axes if axis.name == name)


def _tied(spec: ModelSpec) -> bool:
    return bool(spec.config.get_text_config().tie_word_embeddings)


def _narrows_stream(names: Iterable[str]) -> bool:
    """Return whether the hidden width is among the named axes."""
    return any(kind.is_residual for kind in kinds_of(names))
