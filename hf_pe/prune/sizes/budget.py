"""What the model may cost, and the first step of a path that is within it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from hf_pe.errors import UsageError
from hf_pe.model_spec import ModelSpec
from hf_pe.plans import Frozen
from hf_pe.prune.sizes.allowed import resized_spec
from hf_pe.prune.sizes.costs import MEASURED, UNITS, Costs
from hf_pe.prune.sizes.search import AxisSizes, first
from hf_pe.tasks import Task

TRIALS = 32
"""A floor is sought among so many steps of the path: five or six models are cut and measured."""


def _milliseconds(value: Any) -> Any:
    if type(value) is int and value == 1:
        raise ValueError(
            "1 can be read as one millisecond or as all of the original's latency; write 1.01 for the first, 1.0 for "
            "the second"
        )
    return value


NEAR = 0.25
"""Measured costs that far from the target tell where it is met."""


class Budget(Frozen):
    """What the model may cost after the cut: a share of what it costs now (up to 1.0), or an absolute number."""

    parameters: float | None = Field(None, gt=0, description="outside embeddings")
    flops: float | None = Field(None, gt=0, description="of one forward pass at batch 1, length 128")
    bytes: float | None = Field(None, gt=0, description="of all weights in the model's own dtype")
    latency: Annotated[float | None, BeforeValidator(_milliseconds)] = Field(
        None, gt=0, description="milliseconds (median), measured on this machine"
    )
    memory: float | None = Field(None, gt=0, description="bytes at most in use when loading and running it, measured")
    batch: Literal[1, 32] = Field(1, description="of the pass whose latency counts; its length is 128")

    @model_validator(mode="after")
    def _bounds_something(self) -> "Budget":
        if not self.limits():
            raise ValueError(f"expected at least one of {', '.join(UNITS)}")
        return self

    def __str__(self) -> str:
        """As plans and cards say it."""
        limits = (f"{n} at most {f'{v:.0%}' if v <= 1 else f'{v:,.6g}{UNITS[n]}'}" for n, v in self.limits().items())
        return "budget: " + ", ".join(limits)

    def limits(self) -> dict[str, float]:
        """What is bounded, and by how much."""
        return {name: value for name in UNITS if (value := getattr(self, name)) is not None}

    def measured(self) -> bool:
        """Whether sizes follow from this machine, not from the config alone."""
        return any(name in MEASURED for name in self.limits())

    def overrun(self, costs: Costs, spec: ModelSpec) -> dict[str, float]:
        """What `spec` costs over what it may, by what is bounded."""
        return {
            name: (costs.share(name, spec) if limit <= 1 else costs.of(name, spec)) / limit
            for name, limit in self.limits().items()
        }

    def within(self, spec: ModelSpec, path: Sequence[AxisSizes], costs: Costs) -> AxisSizes:
        """The first setting of `path` that costs no more; where costs are measured, by a line through those looked at.

        Raises:
            UsageError: even the last costs more; says what it costs.
        """
        seen: dict[int, float] = {}

        def fits(setting: AxisSizes) -> bool:
            seen[path.index(setting)] = found = max(self.overrun(costs, resized_spec(spec, setting)).values())
            return found <= 1

        at = first(path, fits)
        if at is not None and self.measured():
            counted = self.model_copy(update=dict.fromkeys(MEASURED))
            least = first(path, lambda s: max(counted.overrun(costs, resized_spec(spec, s)).values(), default=0) <= 1)
            at = max(crossing(seen, at, len(path) - 1), least or 0)
        if at is not None:
            return path[at]
        last = resized_spec(spec, path[-1])
        over = self.overrun(costs, last)
        name = max(over, key=lambda n: over[n])
        raise UsageError(
            f"prune.budget.{name}: {self.limits()[name]:g} cannot be reached along these axes; the least is "
            f"{costs.share(name, last):.1%} ({costs.of(name, last):,.4g}{UNITS[name]}). "
            "Name more in prune.axes, or ask for more."
        )

    def predicted(self, costs: Costs, spec: ModelSpec) -> tuple[str, ...]:
        """What the chosen sizes should cost, for the plan to say."""
        return tuple(
            f"predicted {name}: {costs.of(name, spec):,.4g}{UNITS[name]} "
            f"({costs.share(name, spec):.1%} of the original's)"
            for name in self.limits()
        )


def crossing(seen: Mapping[int, float], at: int, last: int) -> int:
    """Where a line through noisy costs near 1 goes below 1. What a search stops at is the widest that happened to fit.

    Args:
        seen: cost by place on the path.
        at: where the search stopped; the answer where too few costs are near, or they do not fall.
        last: of the path.
    """
    near = {place: cost for place, cost in seen.items() if abs(cost - 1) <= NEAR}
    if len(near) < 3:
        return at
    slope, start = np.polyfit(list(near), list(near.values()), 1)
    return min(max(math.ceil((1 - start) / slope), 0), last) if slope < 0 else at


def above_floor(
    floor: float, task: Task, dense: float, path: Sequence[AxisSizes], metric: Callable[[AxisSizes], float]
) -> tuple[AxisSizes, str]:
    """The last of some settings along `path` that keeps the floor's share of the metric, and what to say about it.

    Args:
        floor: share of the metric that must stay.
        task: says which way is better.
        dense: the metric of the original.
        path: settings from the original on.
        metric: of the model cut to a setting.

    Raises:
        UsageError: even the first cut keeps less.
    """
    least = dense * floor if task.higher_is_better else dense / floor
    last = len(path) - 1
    steps = [path[i] for i in sorted({round(last * trial / TRIALS) for trial in range(1, TRIALS + 1)} - {0})]
    seen: dict[int, float] = {}

    def too_far(setting: AxisSizes) -> bool:
        found = seen[steps.index(setting)] = metric(setting)
        return not (found >= least if task.higher_is_better else found <= least)  # NaN does not keep the floor

    at = first(steps, too_far)
    if at == 0:
        raise UsageError(
            f"prune.floor: even the smallest cut leaves {task.metric} at {seen[0]:.4f}; expected {least:.4f} "
            f"({floor:.0%} of {dense:.4f}). Ask for less, or distil as well."
        )
    best = len(steps) - 1 if at is None else at - 1
    if best not in seen:
        too_far(steps[best])
    return steps[best], (
        f"floor: {floor:.0%} of {task.metric} {dense:.4f}; found {seen[best]:.4f} on the held-out rows in "
        f"{len(seen)} trials"
    )
