"""Search candidate sizes under a budget or a floor.

Each axis has a list of candidate sizes, from the original one to the smallest. A path through all axes is a list of
sizes for all of them that only become smaller; the search looks for its first entry that fits.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

AxisSizes = dict[str, int]
"""The size of each axis, by its name."""


class SensitivityPoint(NamedTuple):
    """The result of cutting one axis alone to one of its candidate sizes.

    Attributes:
        step: index of the candidate size; 0 is the original size.
        loss: distance of the cut model's outputs from the original's.
        cost: cost of the cut model, relative to its limit.
    """

    step: int
    loss: float
    cost: float


CROSSED = 8
"""How many candidate sizes of the axis with the fewest are each combined with the other axes."""


def uniform_path(candidates: Sequence[Sequence[AxisSizes]], steps: int = 64) -> list[AxisSizes]:
    """Return a path that shrinks all axes by the same fraction of their sizes; for a single axis, all its sizes."""
    if len(candidates) == 1:
        return list(candidates[0])
    return [
        _joined(candidates, [round(step / steps * (len(sizes) - 1)) for sizes in candidates])
        for step in range(steps + 1)
    ]


def single_axis_paths(candidates: Sequence[Sequence[AxisSizes]]) -> list[list[AxisSizes]]:
    """Return for each axis the path that shrinks it and leaves the others as they are."""
    original = _joined(candidates, [0] * len(candidates))
    return [[original | size for size in sizes] for sizes in candidates]


def depth_by_width_paths(candidates: Sequence[Sequence[AxisSizes]]) -> list[list[AxisSizes]]:
    """Return paths that hold one axis at one of its sizes and shrink the others by the same fraction.

    The held axis is the one with the fewest candidate sizes, mostly depth; there is a path for each of `CROSSED` sizes.
    """
    fixed, *others = sorted(candidates, key=len)
    if not others:
        return []
    last = len(fixed) - 1
    chosen = sorted({round(last * part / (CROSSED - 1)) for part in range(CROSSED)})
    return [[fixed[step] | sizes for sizes in uniform_path(others)] for step in chosen]


def pareto_maximal(all_sizes: Sequence[AxisSizes]) -> list[AxisSizes]:
    """Return the Pareto-maximal sizes, each once: no other entry is at least as large along every axis."""
    different = [sizes for number, sizes in enumerate(all_sizes) if sizes not in all_sizes[:number]]
    return [sizes for sizes in different if not any(_exceeds(larger, sizes) for larger in different)]


def _exceeds(larger: AxisSizes, sizes: AxisSizes) -> bool:
    return larger is not sizes and all(larger[name] >= size for name, size in sizes.items())


def first_within(path: Sequence[AxisSizes], cost: Callable[[AxisSizes], float]) -> AxisSizes | None:
    """Return the first sizes of `path` whose cost is at most 1; None where there are none."""
    index = first_fitting(path, lambda sizes: cost(sizes) <= 1)
    return None if index is None else path[index]


def path_by_loss(
    candidates: Sequence[Sequence[AxisSizes]], curves: Sequence[Sequence[SensitivityPoint]]
) -> list[AxisSizes]:
    """Return a path that always shrinks the axis with the least loss per saved cost next.

    It follows the lower convex hull of each axis's curve of loss over cost greedily.

    Args:
        candidates: the candidate sizes of each axis.
        curves: for each axis the points that were measured, in order, the original and the smallest size among them.
    """
    steps = [0] * len(candidates)  # the index of the current size, for each axis
    points = [0] * len(candidates)  # the index of the current point on its curve, for each axis
    path = [_joined(candidates, steps)]
    while True:
        moves = [
            (_loss_rate(curve[points[axis]], later), axis, index)
            for axis, curve in enumerate(curves)
            for index, later in enumerate(curve)
            if index > points[axis]
        ]
        if not moves:
            return path
        _, axis, points[axis] = min(moves)
        while steps[axis] < curves[axis][points[axis]].step:
            steps[axis] += 1
            path.append(_joined(candidates, steps))


def _loss_rate(now: SensitivityPoint, later: SensitivityPoint) -> float:
    """Return the loss per saved cost between two points; infinite where the later outputs are not finite."""
    loss = later.loss - now.loss if math.isfinite(later.loss) else math.inf
    return loss / max(now.cost - later.cost, 1e-12)


def first_fitting(path: Sequence[AxisSizes], fits: Callable[[AxisSizes], bool]) -> int | None:
    """Return the index of the first sizes in `path` that fit, by bisection; None where the last ones do not fit.

    Args:
        path: from the largest sizes to the smallest.
        fits: False for the sizes before some entry of the path, and True from there on.
    """
    if not fits(path[-1]):
        return None
    low, high = 0, len(path) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(path[middle]) else (middle + 1, high)
    return low


def _joined(candidates: Sequence[Sequence[AxisSizes]], steps: Sequence[int]) -> AxisSizes:
    return {name: size for sizes, step in zip(candidates, steps, strict=True) for name, size in sizes[step].items()}
