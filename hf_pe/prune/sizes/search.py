"""Candidate sizes under a budget or a floor: paths through them, and the first that fits."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

AxisSizes = dict[str, int]
"""Axis name to size."""


class SensitivityPoint(NamedTuple):
    """A rung of a ladder that was tried alone.

    Attributes:
        rung: its index; 0 is the whole model.
        loss: what the model loses there.
        cost: what it still costs.
    """

    rung: int
    loss: float
    cost: float


CROSSED = 8
"""Rungs of the shortest ladder that are each combined with the others."""


def uniform_path(candidates: Sequence[Sequence[AxisSizes]], steps: int = 64) -> list[AxisSizes]:
    """A path that goes down all candidates by the same share; every rung of a single one."""
    if len(candidates) == 1:
        return list(candidates[0])
    return [
        _joined(candidates, [round(step / steps * (len(rungs) - 1)) for rungs in candidates])
        for step in range(steps + 1)
    ]


def single_axis_paths(candidates: Sequence[Sequence[AxisSizes]]) -> list[list[AxisSizes]]:
    """For each ladder the path that goes down it and leaves the others whole."""
    whole = _joined(candidates, [0] * len(candidates))
    return [[whole | rung for rung in rungs] for rungs in candidates]


def depth_by_width_paths(candidates: Sequence[Sequence[AxisSizes]]) -> list[list[AxisSizes]]:
    """For some rungs of the shortest ladder (depth, say) the path that holds it there and goes down the others."""
    held, *others = sorted(candidates, key=len)
    if not others:
        return []
    last = len(held) - 1
    chosen = sorted({round(last * part / (CROSSED - 1)) for part in range(CROSSED)})
    return [[held[rung] | setting for setting in uniform_path(others)] for rung in chosen]


def pareto_maximal(settings: Sequence[AxisSizes]) -> list[AxisSizes]:
    """Those, each once, that no other exceeds along some axis without falling short along any."""
    different = [setting for number, setting in enumerate(settings) if setting not in settings[:number]]
    return [
        one
        for one in different
        if not any(other is not one and all(other[n] >= size for n, size in one.items()) for other in different)
    ]


def first_within(path: Sequence[AxisSizes], cost: Callable[[AxisSizes], float]) -> AxisSizes | None:
    """The first setting of `path` that costs at most 1; None where none does."""
    at = first(path, lambda setting: cost(setting) <= 1)
    return None if at is None else path[at]


def by_loss(candidates: Sequence[Sequence[AxisSizes]], tried: Sequence[Sequence[SensitivityPoint]]) -> list[AxisSizes]:
    """A path that goes on where the loss for what is saved is least: greedy along the lower hull of each curve.

    Args:
        candidates: one for each axis.
        tried: of each ladder some rungs, the first and the last among them, in order.
    """
    at, place = [0] * len(candidates), [0] * len(candidates)  # rung, and index in tried
    path = [_joined(candidates, at)]
    while True:
        steps = [
            (_loss_rate(here, later), number, index)
            for number, curve in enumerate(tried)
            for here in [curve[place[number]]]
            for index, later in enumerate(curve)
            if index > place[number]
        ]
        if not steps:
            return path
        _, number, place[number] = min(steps)
        while at[number] < tried[number][place[number]].rung:
            at[number] += 1
            path.append(_joined(candidates, at))


def _loss_rate(here: SensitivityPoint, later: SensitivityPoint) -> float:
    """The loss for what is saved; infinite where the outputs behind `later` are not finite."""
    lost = later.loss - here.loss if math.isfinite(later.loss) else math.inf
    return lost / max(here.cost - later.cost, 1e-12)


def first(path: Sequence[AxisSizes], fits: Callable[[AxisSizes], bool]) -> int | None:
    """Index of the first setting that fits, none before it fitting and all behind it; None where the last does not."""
    if not fits(path[-1]):
        return None
    low, high = 0, len(path) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(path[middle]) else (middle + 1, high)
    return low


def _joined(candidates: Sequence[Sequence[AxisSizes]], at: Sequence[int]) -> AxisSizes:
    return {name: size for rungs, rung in zip(candidates, at, strict=True) for name, size in rungs[rung].items()}
