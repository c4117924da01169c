"""Structured pruning as a recipe: choose the units to keep, cut the others out, refit the weights that remain."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator
from transformers import PreTrainedModel

from hf_pe.anatomy import Anatomy, Axis, discover, names_depth
from hf_pe.anatomy.generation_config import generation_changes, generation_losses
from hf_pe.errors import UsageError
from hf_pe.measure import spec_sizes
from hf_pe.model_spec import ModelSpec
from hf_pe.plans import Plan, SizeChange
from hf_pe.prune.basis.residual import untied_spec
from hf_pe.prune.choose import ChoiceSettings, choose
from hf_pe.prune.criteria import CRITERIA, CriterionName
from hf_pe.prune.execute import Execution
from hf_pe.prune.plan_sizes import SizeSettings, axis_named, narrows_stream
from hf_pe.prune.refit.norm_warnings import rescaling_warnings
from hf_pe.prune.refit.sequential import sequential_maps
from hf_pe.prune.sizes.allowed import ambiguous_width, final_sizes, require_amount, sizes_in_turn, smaller_sizes
from hf_pe.prune.sizes.budget import Budget
from hf_pe.prune.sizes.layers import last_removed
from hf_pe.prune.sizes.search import AxisSizes
from hf_pe.recipe import Recipe, StageState
from hf_pe.surgery import cut
from hf_pe.verify.equivalence import require_generation, require_verified_cut

Amount = Annotated[int | float, BeforeValidator(require_amount)]
"""A fraction (float, 0.5) or a number of units (int, 4)."""

REAP = "https://arxiv.org/abs/2510.13999"
SLICING = "https://arxiv.org/abs/2401.15024"
REFITS = {"least_squares": ", least squares", "sequential": ", least squares block by block in order", "none": ""}
DEPTH_PAPERS = {"influence": "https://arxiv.org/abs/2403.03853", "greedy": "https://arxiv.org/abs/2402.09025"}


class StructuredPruning(Recipe):
    """Remove FFN units, heads, hidden width, experts and layers; the result is a smaller stock model.

    Layers are chosen by `depth`, experts by REAP, all other units by `criterion`. Before anything is cut, each axis is
    verified on a tiny model of the same architecture.
    """

    tag = "pruned"
    changes = "structure"
    needs_plain_weights = "a quantized model cannot be cut"
    takes_custom_modules = False
    old_names: ClassVar = {"target": "budget", "repair": "refit", "multiple": "round_to"}
    old_values: ClassVar = {"refit": {"in_order": "sequential"}, "criterion": {"surgeon": "obs_kfac"}}

    recipe: Literal["prune"] = "prune"
    keep: dict[str, Amount] = Field(
        default_factory=dict,
        description="what to keep of each axis: a number of units (int) or a fraction (float, 1.0 is all)",
    )
    budget: Budget | None = Field(None, description="what the model may cost; the sizes of `axes` follow from it")
    floor: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="smallest fraction of the metric to retain (0.97); the sizes of `axes` are searched so that it "
        "still holds",
    )
    axes: tuple[str, ...] = Field(
        ("ffn",),
        min_length=1,
        description="the axes that shrink until the budget or the floor is met; several are first cut alone on "
        "calibration data, and then the one that loses least quality for what it saves shrinks first",
    )
    criterion: CriterionName = Field("obs", description="how units are scored, see docs/pruning.md")
    refit: Literal["least_squares", "sequential", "none"] = Field(
        "least_squares",
        description="least_squares: refit each linear layer that reads pruned units to its original output; "
        "sequential: then also refit block by block (the FFN, and attention where heads were cut) to the original's "
        "hidden states at the same depth, so that later blocks correct earlier errors and take over the work of "
        "removed layers",
    )
    depth: Literal["influence", "greedy"] = Field(
        "influence",
        description="which layers are removed. influence: those that rotate the hidden states least; greedy: one by "
        "one the layer whose absence changes the outputs least (better; each round takes a forward pass over at most "
        "64 rows, or 4,096 tokens, for each layer)",
    )
    hidden: Literal["selection", "rotation"] = Field(
        "selection",
        description="how the hidden width is cut. selection: coordinates are chosen by the criterion; rotation: the "
        "residual stream is rotated to its principal components, and the smallest are cut (RMS norms only; unties the "
        "embeddings)",
    )
    round_to: int | None = Field(
        None, ge=1, description="widths are rounded up to a multiple of it; default 8, 64 before quantization"
    )
    tensor_parallel: int = Field(
        1, ge=1, description="number of devices that will share each layer: heads and widths divide evenly among them"
    )

    @model_validator(mode="after")
    def _something_to_do(self) -> "StructuredPruning":
        if not self.keep and self.budget is None and self.floor is None:
            raise ValueError(
                "prune needs 'keep' (such as keep: {ffn: 0.5}), 'budget' (such as budget: {parameters: 0.5}) or 'floor'"
            )
        unclear = ambiguous_width(self.keep)
        if unclear:
            raise ValueError(f"keep.{unclear}")
        if self.budget is not None and self.floor is not None:
            raise ValueError("expected either 'budget' or 'floor', got both: only one can decide how much is removed")
        return self

    @property
    def _size_settings(self) -> SizeSettings:
        """Return the settings that decide the sizes."""
        return SizeSettings(
            keep=self.keep,
            axes=self.axes,
            budget=self.budget,
            floor=self.floor,
            round_to=self.round_to or 8,
            devices=self.tensor_parallel,
            rotates=self.hidden == "rotation",
        )

    def dry_run(self, spec: ModelSpec) -> tuple[Plan, ModelSpec]:
        """Return the sizes as far as they follow from the config alone, after a check of every axis that may be cut."""
        anatomy, settings = discover(spec.config, spec.model_class), self._size_settings
        axes = {axis.name: axis for axis in anatomy.axes}
        setting, notes, exact = settings.from_config(spec)
        target = smaller_sizes(spec, setting)
        free = [axis.name for sizes in settings.candidates(spec) for axis in anatomy.axes if axis.name in sizes[0]]
        if not target and not free:
            raise UsageError(
                "prune: nothing would be removed, since keep states the sizes that the model has. Keep less, such as "
                "ffn: 0.5."
            )
        for name in dict.fromkeys((*target, *free)):
            require_verified_cut(spec.config, spec.model_class, axes[name])
        layers = {n: last_removed(spec, axes[n], size) for n, size in target.items() if names_depth(n)}
        notes = (*notes, *require_generation(spec.config, spec.model_class, layers))
        for name in target:
            _require_criterion_fits(self.criterion, axes[name])
        if self.refit == "sequential":
            _require_ffn(anatomy)
        in_turn, after = sizes_in_turn(spec, target)
        if settings.rotates and narrows_stream(target):
            after = untied_spec(after)
            notes = (*notes, "principal components of the hidden width; the output head has weights of its own")
        sizes = final_sizes(spec, after, target)
        unscaled = [w for name in target if self.refit == "none" for w in rescaling_warnings(spec, axes[name])]
        plan = self.planned(
            title=f"structured pruning ({CRITERIA[self.criterion].title}{REFITS[self.refit]})",
            sizes=tuple(SizeChange(axis=n, before=axes[n].size, after=s) for n, s in sizes.items()),
            exact=exact,
            notes=(
                *notes,
                *_size_notes(axes, target, in_turn, sizes),
                "which units are kept is decided from weights and data",
            ),
            warnings=tuple(unscaled),
            references=tuple(self._references([axes[name] for name in target])),
            **spec_sizes(after),
        )
        return plan, after

    def before(self, later: Sequence[Recipe]) -> "StructuredPruning":
        """Return the recipe with a `round_to` that fits later recipes, at least 8, where it has none."""
        if self.round_to is not None:
            return self
        return self.model_copy(update={"round_to": max([8, *(recipe.width_multiple for recipe in later)])})

    def plan(self, state: StageState) -> Plan:
        """Choose the sizes that the config leaves open, then the kept units, axis by axis, on copies of the model.

        Raises:
            UsageError: even the smallest cut is below the floor, or even the largest is above the budget.
        """
        if self.budget is not None or self.floor is not None:
            setting, notes = self._size_settings.from_data(state, lambda setting: self._pruned_to(state, setting))
            plan = self._with_sizes(state.spec, setting).plan(state)
            return plan.model_copy(update={"notes": (*notes, *plan.notes)})
        spec = state.spec
        plan, _ = self.dry_run(spec)
        how = ChoiceSettings(self.criterion, self.depth, rotates=self.hidden == "rotation")
        kept: dict[str, dict[str, list[int]]] = {}
        losses: list[str] = []
        sizes, _ = sizes_in_turn(spec, self._size_settings.fixed(spec))
        for name, size in sizes.items():
            axis = axis_named(state.model, name)
            if size == axis.size:  # cuts of other axes have shrunk it already
                continue
            kept[axis.name] = choose(how, state, axis, size)
            losses += _generation_losses(state.model, axis, kept[axis.name])
            if name != [*sizes][-1]:  # units of the next axis are chosen in the model without those of this one
                state = replace(state, model=cut(state.model, axis, kept[axis.name]))
        return plan.model_copy(update={"kept": kept, "notes": tuple(losses)})

    def apply(self, state: StageState, plan: Plan) -> StageState:
        """Cut the axes of the plan in its order, and refit the linear layers that read removed units."""
        how = Execution(
            refits=self.refit != "none", sequential=self.refit == "sequential", rotates=self.hidden == "rotation"
        )
        return how.carry_out(state, plan)

    def _with_sizes(self, spec: ModelSpec, setting: AxisSizes) -> "StructuredPruning":
        """Return the recipe that states all sizes in `keep`."""
        sizes, _ = sizes_in_turn(spec, setting)
        return self.model_copy(update={"keep": sizes, "budget": None, "floor": None})

    def _pruned_to(self, state: StageState, setting: AxisSizes) -> PreTrainedModel:
        """Return the model pruned to the sizes of `setting` and of `keep`."""
        spec = state.spec
        return self._with_sizes(spec, self._size_settings.fixed(spec) | setting).carry_out(state).model

    def _references(self, axes: Sequence[Axis]) -> Iterator[str]:
        """Yield links to the papers whose methods a plan that cuts `axes` uses."""
        criterion, choices = CRITERIA[self.criterion], {axis.kind.choice for axis in axes}
        if criterion.reference:
            yield criterion.reference
        if "depth" in choices:
            yield DEPTH_PAPERS[self.depth]
        if "routing" in choices:
            yield REAP
        if self.hidden == "rotation" and any(axis.kind.is_residual for axis in axes):
            yield SLICING


def _require_criterion_fits(criterion: str, axis: Axis) -> None:
    """Refuse a criterion whose statistics do not exist for an axis.

    Raises:
        UsageError: they do not exist.
    """
    needs = CRITERIA[criterion].needs
    read = any(slot.consumes and slot.layout.share == 1 for slot in axis.slots)
    if needs and axis.kind.choice == "criterion" and not read:
        raise UsageError(
            f"prune.criterion: {criterion} needs linear layers that read the units, but only convolutions read those "
            f"of '{axis.name}'. Choose magnitude_l2."
        )
    if axis.in_experts and "gradients" in needs:
        raise UsageError(
            f"prune.criterion: {criterion} needs gradients of each expert, but the weights of all experts are one "
            "tensor. Choose obs (the default), activation_weight or magnitude_l2."
        )


def _require_ffn(anatomy: Anatomy) -> None:
    if not any(sequential_maps(axis) for axis in anatomy.named("ffn")):
        raise UsageError(
            "prune.refit: sequential refits the output layer of each FFN, but this model has no FFN outside its "
            "experts. Choose least_squares."
        )


def _size_notes(
    axes: Mapping[str, Axis], target: Mapping[str, int], in_turn: Mapping[str, int], sizes: Mapping[str, int]
) -> Iterator[str]:
    """Yield notes on the consequences of a cut of the hidden width.

    Args:
        axes: the axes, by name.
        target: the size that each axis is cut to.
        in_turn: the size of each axis right after its turn.
        sizes: the size of each axis in the end.
    """
    for name in target:
        if not axes[name].kind.is_residual and sizes[name] < in_turn[name]:
            kept = f"{sizes[name]} of {axes[name].size} units are kept"
            yield f"{name}: {kept}, since more of them are removed with the hidden width"
    for name in target:
        if axes[name].kind.is_residual:
            yield f"hidden states, and embeddings made of them, have a width of {target[name]} afterwards"


def _generation_losses(model: PreTrainedModel, axis: Axis, kept: dict[str, list[int]]) -> tuple[str, ...]:
    """Return notes on the settings that the model's generation config loses by a cut."""
    if not model.can_generate():
        return ()
    values = vars(model.generation_config)
    return generation_losses(values, generation_changes(values, model.config, axis, kept))
