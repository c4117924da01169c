"""Structured pruning as a recipe: choose units, cut them out, refit the weights that are left."""

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
from hf_pe.prune.sizes.allowed import amount, final_sizes, one_or_all, removed, sizes_in_turn
from hf_pe.prune.sizes.budget import Budget
from hf_pe.prune.sizes.layers import last_removed
from hf_pe.prune.sizes.search import AxisSizes
from hf_pe.recipe import Recipe, StageState
from hf_pe.surgery import cut
from hf_pe.verify.equivalence import require_generation, require_verified_cut

Amount = Annotated[int | float, BeforeValidator(amount)]
"""A share (float, 0.5) or a number of units (int, 4)."""

REAP = "https://arxiv.org/abs/2510.13999"
SLICING = "https://arxiv.org/abs/2401.15024"
REFITS = {"least_squares": ", least squares", "sequential": ", least squares block by block in order", "none": ""}
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
    old_names: ClassVar = {"target": "budget", "repair": "refit", "multiple": "round_to"}
    old_values: ClassVar = {"refit": {"in_order": "sequential"}, "criterion": {"surgeon": "obs_kfac"}}

    recipe: Literal["prune"] = "prune"
    keep: dict[str, Amount] = Field(
        default_factory=dict, description="axis to what remains: a number of units (int) or a share (float, 1.0 is all)"
    )
    budget: Budget | None = Field(None, description="what the model may cost; the sizes of `axes` follow")
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
    criterion: CriterionName = "obs"
    refit: Literal["least_squares", "sequential", "none"] = Field(
        "least_squares",
        description="least_squares: refit each linear layer that reads pruned units to its original output; "
        "sequential: then also refit block by block (the FFN, and attention where heads were cut) to the original's "
        "hidden state at that depth, so that later blocks correct earlier errors and stand in for removed layers",
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
    round_to: int | None = Field(
        None, ge=1, description="widths are rounded up to it; default 8, 64 before quantization"
    )
    tensor_parallel: int = Field(
        1, ge=1, description="devices that will share each layer: heads, and multiples of widths, divide evenly"
    )

    @model_validator(mode="after")
    def _something_to_do(self) -> "StructuredPruning":
        if not self.keep and self.budget is None and self.floor is None:
            raise ValueError(
                "prune needs 'keep' (such as keep: {ffn: 0.5}), 'budget' (such as budget: {parameters: 0.5}) or 'floor'"
            )
        unclear = one_or_all(self.keep)
        if unclear:
            raise ValueError(f"keep.{unclear}")
        if self.budget is not None and self.floor is not None:
            raise ValueError("prune takes either 'budget' or 'floor': one of the two decides how much goes")
        return self

    @property
    def _size_settings(self) -> SizeSettings:
        """What decides the sizes."""
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
        """Sizes from the config alone, as far as they follow from it; proves every axis that may be cut."""
        anatomy, settings = discover(spec.config, spec.model_class), self._size_settings
        axes = {axis.name: axis for axis in anatomy.axes}
        setting, notes, exact = settings.from_config(spec)
        target = removed(spec, setting)
        free = [axis.name for sizes in settings.candidates(spec) for axis in anatomy.axes if axis.name in sizes[0]]
        if not target and not free:
            raise UsageError("prune: nothing would be removed; give keep less than the model has, such as ffn: 0.5.")
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
        """Return the recipe with widths that are multiples of what later recipes need, of 8 at least, unless given."""
        if self.round_to is not None:
            return self
        return self.model_copy(update={"round_to": max([8, *(recipe.width_multiple for recipe in later)])})

    def plan(self, state: StageState) -> Plan:
        """Choose sizes that the config leaves open, then the kept units, axis by axis, on copies of the model.

        Raises:
            UsageError: even the smallest cut misses the floor, or even the largest misses the target.
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
            if size == axis.size:  # others took along what was to go
                continue
            kept[axis.name] = choose(how, state, axis, size)
            losses += _generation_losses(state.model, axis, kept[axis.name])
            if name != [*sizes][-1]:  # the next axis is judged once this one is cut
                state = replace(state, model=cut(state.model, axis, kept[axis.name]))
        return plan.model_copy(update={"kept": kept, "notes": tuple(losses)})

    def apply(self, state: StageState, plan: Plan) -> StageState:
        """Cut what the plan says, in its order, and refit the maps that read removed units."""
        how = Execution(
            refits=self.refit != "none", sequential=self.refit == "sequential", rotates=self.hidden == "rotation"
        )
        return how.carry_out(state, plan)

    def _with_sizes(self, spec: ModelSpec, setting: AxisSizes) -> "StructuredPruning":
        """Return the recipe with all sizes in `keep`."""
        sizes, _ = sizes_in_turn(spec, setting)
        return self.model_copy(update={"keep": sizes, "budget": None, "floor": None})

    def _pruned_to(self, state: StageState, setting: AxisSizes) -> PreTrainedModel:
        """Return the model pruned to `setting` and to what `keep` states."""
        spec = state.spec
        return self._with_sizes(spec, self._size_settings.fixed(spec) | setting).carry_out(state).model

    def _references(self, axes: Sequence[Axis]) -> Iterator[str]:
        """Yield the papers that a plan which cuts `axes` follows."""
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
    """Refuse a criterion that needs statistics which `axis` does not have.

    Raises:
        UsageError: for that reason.
    """
    needs = CRITERIA[criterion].needs
    read = any(slot.consumes and slot.layout.share == 1 for slot in axis.slots)
    if needs and axis.kind.choice == "criterion" and not read:
        raise UsageError(
            f"prune.criterion: {criterion} looks at linear maps that read the units, and what reads '{axis.name}' are "
            "convolutions. Choose magnitude_l2."
        )
    if axis.in_experts and "gradients" in needs:
        raise UsageError(
            f"prune.criterion: {criterion} needs gradients inside the experts, which share one tensor. Choose obs (the "
            "default), activation_weight or a magnitude."
        )


def _require_ffn(anatomy: Anatomy) -> None:
    if not any(sequential_maps(axis) for axis in anatomy.named("ffn")):
        raise UsageError(
            "prune.refit: sequential moves the output of each FFN, and this model has none outside its experts. "
            "Choose least_squares."
        )


def _size_notes(
    axes: Mapping[str, Axis], target: Mapping[str, int], in_turn: Mapping[str, int], sizes: Mapping[str, int]
) -> Iterator[str]:
    """Yield sentences on what follows from a cut of the hidden width.

    Args:
        axes: by name.
        target: size that each axis is cut to.
        in_turn: its size right after its turn.
        sizes: its size in the end.
    """
    for name in target:
        if not axes[name].kind.is_residual and sizes[name] < in_turn[name]:
            left = f"{sizes[name]} of {axes[name].size} units are left"
            yield f"{name}: {left}, since more of them go with the hidden width"
    for name in target:
        if axes[name].kind.is_residual:
            yield f"hidden states, and embeddings made of them, are {target[name]} wide then"


def _generation_losses(model: PreTrainedModel, axis: Axis, kept: dict[str, list[int]]) -> tuple[str, ...]:
    """Return sentences on what the model's generation config can no longer say after a cut."""
    if not model.can_generate():
        return ()
    values = vars(model.generation_config)
    return generation_losses(values, generation_changes(values, model.config, axis, kept))
