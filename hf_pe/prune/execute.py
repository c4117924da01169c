"""Carry out a pruning plan: cut axis by axis, and refit the weights that remain."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.anatomy import Axis, discover, names_depth
from hf_pe.model_spec import ModelSpec
from hf_pe.plans import Plan
from hf_pe.prune.basis.attention_heads import with_sorted_heads
from hf_pe.prune.basis.residual import rotated
from hf_pe.prune.plan_sizes import axis_named
from hf_pe.prune.refit.experts import refit_experts_
from hf_pe.prune.refit.least_squares import refit_
from hf_pe.prune.refit.norms import rescale_norms_
from hf_pe.prune.refit.sequential import refit_sequentially_
from hf_pe.prune.sizes.allowed import final_sizes, resized_spec
from hf_pe.prune.statistics.cached import moments_key, moments_of
from hf_pe.recipe import StageState
from hf_pe.surgery import cut
from hf_pe.tasks import TaskData
from hf_pe.verify.equivalence import require_generation, require_verified_cut


@dataclass(frozen=True)
class Execution:
    """The settings of a prune recipe that decide how a plan is carried out.

    Attributes:
        refits: whether linear layers that read removed units are refitted to their original output.
        sequential: whether the blocks are refitted one after the other after that, each to the original's hidden state.
        rotates: whether the residual stream is rotated to its principal components before the hidden width is cut.
    """

    refits: bool
    sequential: bool
    rotates: bool

    def carry_out(self, state: StageState, plan: Plan) -> StageState:
        """Return the state with the pruned model.

        Args:
            state: with the model to prune.
            plan: with the kept units.

        Raises:
            ValueError: the plan has no kept units, or their numbers are not the sizes that it states.
        """
        if plan.kept is None:
            raise ValueError("The plan has no kept units yet: make it with plan(state).")
        original = model = state.model
        counts = {name: len(next(iter(kept.values()))) for name, kept in plan.kept.items()}
        require_planned(original, resized_spec(state.spec, counts).config, plan)
        layers = {name: kept for name, kept in plan.kept.items() if names_depth(name)}
        require_generation(original.config, type(original), layers)
        narrower = False
        for name, kept in plan.kept.items():
            axis = axis_named(model, name)
            require_verified_cut(model.config, type(model), axis, kept)
            if axis.kind.is_residual:  # comes last: afterwards hidden states cannot be compared with the original's
                if not narrower:
                    self._refit_in_order_(model, original, plan.kept, state.data)
                narrower = True
                model = self._in_other_basis(replace(state, model=model), axis)
            model = self._cut(replace(state, model=model), axis, kept)
        if not narrower:
            self._refit_in_order_(model, original, plan.kept, state.data)
        require_planned(original, model.config, plan)
        return state.with_model(model)

    def _in_other_basis(self, state: StageState, axis: Axis) -> PreTrainedModel:
        """Return a model with the same outputs whose hidden coordinates are sorted by importance, where needed."""
        model = rotated(state.model, axis, state.data) if self.rotates else state.model
        if axis.narrows_heads:
            weighted = next(moments_of(replace(state, model=model), axis, weighted=True))
            model, moments = with_sorted_heads(model, axis, weighted)
            state.statistics.put(model, moments_key(axis, weighted=True), moments)
        return model

    def _cut(self, state: StageState, axis: Axis, kept: dict[str, list[int]]) -> PreTrainedModel:
        model, data = state.model, state.data
        smaller = cut(model, axis, kept)
        if not self.refits:
            return smaller
        if any(slot.consumes for slot in axis.slots):
            for moments in moments_of(state, axis, weighted=True):
                refit_(smaller, model, axis, kept, moments)
        if axis.kind.choice == "routing":
            refit_experts_(smaller, model, axis, data)
        rescale_norms_(smaller, model, axis, kept, data)
        return smaller

    def _refit_in_order_(
        self,
        model: PreTrainedModel,
        original: PreTrainedModel,
        kept: Mapping[str, dict[str, list[int]]],
        data: TaskData,
    ) -> None:
        """Refit the FFN of each block, and attention where heads were cut, to the original's states."""
        if not self.sequential or model is original:
            return
        layers = {stack: indices for name in kept if names_depth(name) for stack, indices in kept[name].items()}
        anatomy = discover(model.config, type(model))
        heads = [axis for axis in anatomy.axes if axis.name in kept and axis.kind.is_heads]
        for axis in anatomy.named("ffn"):
            refit_sequentially_(model, original, axis, layers, data, heads)


def require_planned(original: PreTrainedModel, config: PretrainedConfig, plan: Plan) -> None:
    """Refuse a config whose sizes differ from those of the plan.

    Args:
        original: the model before pruning.
        config: the config after pruning.
        plan: the plan.

    Raises:
        ValueError: a size differs.
    """
    before = ModelSpec(config=original.config, model_class=type(original))
    sizes = final_sizes(before, replace(before, config=config), [change.axis for change in plan.sizes])
    for change in plan.sizes:
        if sizes[change.axis] != change.after:
            raise ValueError(
                f"The plan leaves {change.after} units of '{change.axis}', its kept units {sizes[change.axis]}. Make "
                "the plan again, or let both state the same number."
            )
