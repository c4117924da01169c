"""Decide the size of every axis of a pruned model: as the recipe states it, or by a budget or a floor of the metric."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from transformers import PreTrainedModel

from hf_pe.anatomy import Axis, discover, kinds_of
from hf_pe.calibration.coverage import reached_modules, require_reached
from hf_pe.errors import UsageError
from hf_pe.measure import evaluate_task
from hf_pe.model_spec import ModelSpec
from hf_pe.prune.sizes.allowed import candidate_sizes, kept_sizes, resized_spec, rounding_notes
from hf_pe.prune.sizes.budget import Budget, above_floor
from hf_pe.prune.sizes.costs import Costs
from hf_pe.prune.sizes.search import (
    AxisSizes,
    depth_by_width_paths,
    first_within,
    pareto_maximal,
    path_by_loss,
    single_axis_paths,
    uniform_path,
)
from hf_pe.prune.sizes.sensitivity import least_loss, sensitivity_curves
from hf_pe.recipe import StageState

PruneTo = Callable[[AxisSizes], PreTrainedModel]
"""Returns the model pruned to the given sizes, and to those that the recipe states."""


@dataclass(frozen=True)
class SizeSettings:
    """The settings of a prune recipe that decide the sizes.

    Attributes:
        keep: by axis name what to keep, a number of units (int) or a fraction (float).
        axes: names of the axes that shrink until the budget or the floor is met.
        budget: what the model may cost; None without a budget.
        floor: smallest fraction of the metric to retain; None without a floor.
        round_to: widths on each device are multiples of it.
        devices: number of devices that share the widths.
        rotates: whether the residual stream is rotated before the hidden width is cut.
    """

    keep: dict[str, int | float]
    axes: tuple[str, ...]
    budget: Budget | None
    floor: float | None
    round_to: int
    devices: int
    rotates: bool

    def fixed(self, spec: ModelSpec) -> AxisSizes:
        """Return the sizes that `keep` states."""
        return kept_sizes(spec, self.keep, self.round_to, self.devices)

    def candidates(self, spec: ModelSpec) -> list[list[AxisSizes]]:
        """Return for each of `axes` the sizes that it can have, largest first; none without a budget or a floor.

        Raises:
            UsageError: `keep` fixes one of `axes`, or a rotation would change the cost of the sizes.
        """
        if self.budget is None and self.floor is None:
            return []
        fixed = self.fixed(spec)
        if self.rotates and narrows_stream((*fixed, *self.axes)) and _tied(spec):
            raise UsageError(
                "prune.hidden: rotation unties this model's embeddings, which a target or a floor does not take into "
                "account. Choose hidden: selection, or give all sizes in keep."
            )
        candidates = [candidate_sizes(spec, name, self.round_to, self.devices) for name in self.axes]
        for name, sizes in zip(self.axes, candidates, strict=True):
            if any(axis in fixed for axis in sizes[0]):
                raise UsageError(
                    f"prune.axes: the size of '{name}' would follow from the budget or floor, but prune.keep fixes "
                    "it. Leave out one of the two."
                )
        return candidates

    def from_config(self, spec: ModelSpec) -> tuple[AxisSizes, tuple[str, ...], bool]:
        """Return sizes, notes on them, and whether they are final, as far as the config decides them.

        A floor and a measured budget need data and a model.
        """
        fixed, candidates = self.fixed(spec), self.candidates(spec)
        notes = rounding_notes(spec, self.keep, fixed)
        if self.floor is not None:
            search = f"cut along {', '.join(self.axes)} as long as {self.floor:.0%} of the metric is retained"
            return fixed, (*notes, search), False
        if self.budget is None:
            return fixed, notes, True
        note = f"{self.budget}, along {', '.join(self.axes)}"
        if self.budget.measured():
            return fixed, (*notes, f"{note}; decided by measuring"), False
        path = [fixed | setting for setting in uniform_path(candidates)]
        return self.budget.within(spec, path, Costs(spec)), (*notes, note), len(candidates) == 1

    def from_data(self, state: StageState, prune_to: PruneTo) -> tuple[AxisSizes, tuple[str, ...]]:
        """Return the sizes that the budget or the floor leads to, and notes on what the plan expects of them.

        Args:
            state: with the model before anything is cut.
            prune_to: returns a pruned copy of the model.

        Raises:
            UsageError: even the smallest cut misses the floor, or even the largest misses the budget; or the
                calibration data never reach one of `axes`.
        """
        model, data, spec = state.model, state.data, state.spec
        fixed, candidates = self.fixed(spec), self.candidates(spec)
        for axis in (axis_named(model, name) for sizes in candidates for name in sizes[0]):
            require_reached(reached_modules(model, axis, data), axis)
        budget = self.budget or Budget(parameters=1.0)
        costs = Costs(spec, budget.batch, model.device)

        def overrun(setting: AxisSizes) -> float:
            return max(budget.overrun(costs, resized_spec(spec, fixed | setting)).values())

        path = self._path(state, candidates, prune_to, overrun)
        if self.floor is None:
            sizes = budget.within(spec, [fixed | setting for setting in path], costs)
            return sizes, (str(budget), *budget.predicted(costs, resized_spec(spec, sizes)))

        def metric(setting: AxisSizes) -> float:
            return evaluate_task(prune_to(setting), data).scores()[data.task.metric]

        dense = evaluate_task(model, data).scores()[data.task.metric]
        sizes, note = above_floor(self.floor, data.task, dense, [fixed | setting for setting in path], metric)
        return sizes, (note,)

    def _path(
        self,
        state: StageState,
        candidates: list[list[AxisSizes]],
        prune_to: PruneTo,
        overrun: Callable[[AxisSizes], float],
    ) -> list[AxisSizes]:
        """Return the sizes to try, from the original to the smallest; the cuts that lose least quality come first."""
        path = uniform_path(candidates)
        if len(candidates) == 1:
            return path
        path = path_by_loss(candidates, sensitivity_curves(state.model, state.data, candidates, prune_to, overrun))
        if self.floor is not None:
            return path
        # the losses of axes cut alone do not predict that of a joint cut, so several paths are compared at the budget
        combined = [] if self.budget is not None and self.budget.measured() else depth_by_width_paths(candidates)
        paths = (path, uniform_path(candidates), *single_axis_paths(candidates), *combined)
        ends = pareto_maximal([end for sizes in paths if (end := first_within(sizes, overrun)) is not None])
        return [least_loss(state.model, state.data, ends, prune_to), path[-1]] if ends else path


def axis_named(model: PreTrainedModel, name: str) -> Axis:
    """Return the axis of `model` with this name."""
    return next(axis for axis in discover(model.config, type(model)).axes if axis.name == name)


def narrows_stream(names: Iterable[str]) -> bool:
    """Return whether the hidden width is among the named axes."""
    return any(kind.is_residual for kind in kinds_of(names))


def _tied(spec: ModelSpec) -> bool:
    return bool(getattr(spec.config.get_text_config(), "tie_word_embeddings", False))
