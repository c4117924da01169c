"""Budgets and floors: what a pruned model may cost or must retain, and the sizes on a path that meet it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from hf_pe.errors import UsageError
from hf_pe.model_spec import ModelSpec
from hf_pe.prune.sizes.allowed import resized_spec
from hf_pe.prune.sizes.costs import MEASURED, UNITS, Costs
from hf_pe.prune.sizes.search import AxisSizes, first_fitting
from hf_pe.settings import Settings
from hf_pe.tasks import Task

TRIALS = 32
"""Sizes of the path that a floor is searched among, by bisection: five or six models are cut and measured."""


def _milliseconds(value: Any) -> Any:
    if type(value) is int and value == 1:
        raise ValueError(
            "1 can be read as one millisecond or as all of the original's latency; write 1.01 for the first, 1.0 for "
            "the second"
        )
    return value


NEAR = 0.25
"""Measured costs within this distance of the limit, relative to it, decide which sizes meet it."""


class Budget(Settings):
    """The most that the model may cost after the cut: a fraction of the original's cost (up to 1.0), or a number."""

    parameters: float | None = Field(None, gt=0, description="parameters outside embeddings")
    flops: float | None = Field(None, gt=0, description="FLOPs of one forward pass at batch 1, length 128")
    bytes: float | None = Field(None, gt=0, description="bytes of all weights in the model's own dtype")
    latency: Annotated[float | None, BeforeValidator(_milliseconds)] = Field(
        None, gt=0, description="milliseconds (median), measured on this machine"
    )
    memory: float | None = Field(None, gt=0, description="peak bytes of loading and running it, measured")
    batch: Literal[1, 32] = Field(1, description="batch size of the pass whose latency is measured; its length is 128")

    @model_validator(mode="after")
    def _bounds_something(self) -> "Budget":
        if not self.limits():
            raise ValueError(f"expected at least one of {', '.join(UNITS)}")
        return self

    def __str__(self) -> str:
        """Return the limits as plans and cards state them."""
        limits = (f"{n} at most {f'{v:.0%}' if v <= 1 else f'{v:,.6g}{UNITS[n]}'}" for n, v in self.limits().items())
        return "budget: " + ", ".join(limits)

    def limits(self) -> dict[str, float]:
        """Return the limit of each cost that is bounded."""
        return {name: value for name in UNITS if (value := getattr(self, name)) is not None}

    def measured(self) -> bool:
        """Return whether a bounded cost is measured on this machine, so that sizes do not follow from the config."""
        return any(name in MEASURED for name in self.limits())

    def overrun(self, costs: Costs, spec: ModelSpec) -> dict[str, float]:
        """Return each bounded cost of a model over its limit: at most 1 where the limit holds."""
        return {
            name: (costs.fraction(name, spec) if limit <= 1 else costs.of(name, spec)) / limit
            for name, limit in self.limits().items()
        }

    def within(self, spec: ModelSpec, path: Sequence[AxisSizes], costs: Costs) -> AxisSizes:
        """Return the first sizes of `path` that are within the budget.

        Measured costs are noisy: there a line through all measured ones near the limit decides.

        Raises:
            UsageError: even the last sizes cost more; the message states what they cost.
        """
        overruns: dict[int, float] = {}

        def fits(sizes: AxisSizes) -> bool:
            overruns[path.index(sizes)] = overrun = max(self.overrun(costs, resized_spec(spec, sizes)).values())
            return overrun <= 1

        index = first_fitting(path, fits)
        if index is not None and self.measured():
            counted = self.model_copy(update=dict.fromkeys(MEASURED))
            least = first_fitting(
                path, lambda s: max(counted.overrun(costs, resized_spec(spec, s)).values(), default=0) <= 1
            )
            index = max(crossing(overruns, index, len(path) - 1), least or 0)
        if index is not None:
            return path[index]
        last = resized_spec(spec, path[-1])
        over = self.overrun(costs, last)
        name = max(over, key=lambda n: over[n])
        raise UsageError(
            f"prune.budget.{name}: {self.limits()[name]:g} cannot be reached along these axes; the least is "
            f"{costs.fraction(name, last):.1%} ({costs.of(name, last):,.4g}{UNITS[name]}). "
            "Name more axes in prune.axes, or raise the limit."
        )

    def predicted(self, costs: Costs, spec: ModelSpec) -> tuple[str, ...]:
        """Return sentences for the plan on what the chosen sizes should cost."""
        return tuple(
            f"predicted {name}: {costs.of(name, spec):,.4g}{UNITS[name]} "
            f"({costs.fraction(name, spec):.1%} of the original's)"
            for name in self.limits()
        )


def crossing(overruns: Mapping[int, float], index: int, last: int) -> int:
    """Return where on a path noisy costs fall below their limit, by a line through those near it.

    The bisection alone would prefer sizes that happened to be measured too fast.

    Args:
        overruns: cost over limit, by index on the path.
        index: where the bisection ended; returned where fewer than three costs are near the limit, or they do not fall.
        last: the last index of the path.
    """
    near = {step: overrun for step, overrun in overruns.items() if abs(overrun - 1) <= NEAR}
    if len(near) < 3:
        return index
    slope, start = np.polyfit(list(near), list(near.values()), 1)
    return min(max(math.ceil((1 - start) / slope), 0), last) if slope < 0 else index


def above_floor(
    floor: float, task: Task, dense: float, path: Sequence[AxisSizes], metric: Callable[[AxisSizes], float]
) -> tuple[AxisSizes, str]:
    """Return the last of `TRIALS` sizes along `path` whose model retains the floor, and a note for the plan.

    Args:
        floor: fraction of the metric to retain.
        task: states whether a higher metric is better.
        dense: the metric of the original.
        path: sizes from the original ones on.
        metric: returns the metric of the model cut to some sizes.

    Raises:
        UsageError: even the first cut retains less.
    """
    least = dense * floor if task.higher_is_better else dense / floor
    last = len(path) - 1
    steps = [path[i] for i in sorted({round(last * trial / TRIALS) for trial in range(1, TRIALS + 1)} - {0})]
    values: dict[int, float] = {}

    def is_below(sizes: AxisSizes) -> bool:
        value = values[steps.index(sizes)] = metric(sizes)
        return not (value >= least if task.higher_is_better else value <= least)  # NaN does not retain the floor

    first_below = first_fitting(steps, is_below)
    if first_below == 0:
        raise UsageError(
            f"prune.floor: even the smallest cut leaves {task.metric} at {values[0]:.4f}; expected {least:.4f} "
            f"({floor:.0%} of {dense:.4f}). Lower the floor, or distil as well."
        )
    best = len(steps) - 1 if first_below is None else first_below - 1
    if best not in values:
        is_below(steps[best])
    return steps[best], (
        f"floor: {floor:.0%} of {task.metric} {dense:.4f}; measured {values[best]:.4f} on the held-out rows in "
        f"{len(values)} trials"
    )
