"""Measure how far the outputs of a model move when one axis alone is cut, or one layer alone is skipped."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel

from hf_pe.anatomy import Axis, kind_of
from hf_pe.calibration import distance, rows_within, task_outputs
from hf_pe.calibration.coverage import reached_modules, require_reached
from hf_pe.progress import advance
from hf_pe.prune.sizes.search import AxisSizes, SensitivityPoint
from hf_pe.tasks import TaskData
from hf_pe.verify.ablate import skipped

FRACTIONS = (0.15, 0.3, 0.5, 0.75, 1.0)
"""The candidate sizes that each axis is cut to, as fractions of its list; between them the loss is interpolated."""

TOKENS = 4096
"""About how many tokens the outputs are computed on for each layer that may be removed."""


def sensitivity_curves(
    model: PreTrainedModel,
    data: TaskData,
    candidates: Sequence[Sequence[AxisSizes]],
    prune_to: Callable[[AxisSizes], PreTrainedModel],
    cost: Callable[[AxisSizes], float],
) -> list[list[SensitivityPoint]]:
    """Cut each axis alone to some of its candidate sizes, and measure what the outputs lose.

    Args:
        model: the original.
        data: has the rows.
        candidates: the candidate sizes of each axis.
        prune_to: returns the model cut to some sizes and refitted.
        cost: returns the cost of some sizes.

    Returns:
        For each axis some of its sizes, the original and the smallest among them. The loss never falls along them.
    """
    original, pairs = task_outputs(model, data), any(_narrows(sizes[0]) for sizes in candidates)
    curves = []
    for sizes in candidates:
        last = len(sizes) - 1
        chosen = sorted({max(round(fraction * last), 1) for fraction in FRACTIONS})
        curve = [SensitivityPoint(0, 0.0, cost(sizes[0]))]
        for number, step in enumerate(chosen, 1):
            loss = distance(task_outputs(prune_to(sizes[step]), data), original, pairs=pairs)
            curve.append(SensitivityPoint(step, max(loss, curve[-1].loss), cost(sizes[step])))
            advance(f"sensitivity along {', '.join(sizes[0])}", number, len(chosen))
        curves.append(curve)
    return curves


def least_loss(
    model: PreTrainedModel,
    data: TaskData,
    all_sizes: Sequence[AxisSizes],
    prune_to: Callable[[AxisSizes], PreTrainedModel],
) -> AxisSizes:
    """Return the sizes whose cut and refitted model loses least; the first of equals.

    Args:
        model: the original.
        data: has the rows.
        all_sizes: the sizes to compare, at least one entry.
        prune_to: returns the model cut to some sizes and refitted.
    """
    original, losses = task_outputs(model, data), list[float]()
    for number, sizes in enumerate(all_sizes, 1):
        losses.append(distance(task_outputs(prune_to(sizes), data), original, pairs=_narrows(sizes)))
        advance("sizes within the budget", number, len(all_sizes))
    return all_sizes[losses.index(min(losses))]


def greedy_depth_order(
    model: PreTrainedModel,
    axis: Axis,
    removable: Sequence[int],
    count: int,
    data: TaskData,
    removed: list[int],
) -> list[int]:
    """Order layers greedily: always remove the one whose absence, with those removed before, changes the outputs least.

    As SLEB (Song et al. 2024, arXiv:2402.09025, algorithm 1), with the distance of the task's outputs in place of
    perplexity. Each round takes a forward pass over about `TOKENS` tokens for each layer that remains.

    Args:
        model: the original.
        axis: an axis of depth; the layers of one number are removed from all its stacks.
        removable: layers that may be removed.
        count: how many layers to remove.
        data: has the rows.
        removed: the layers that earlier calls removed, in order; further ones are appended.

    Returns:
        `removed`, with at least `count` layers.
    """
    if len(removed) < count:
        require_reached(reached_modules(model, axis, data), axis)
    rows = rows_within(data, TOKENS)
    original = task_outputs(model, data, rows) if len(removed) < count else None
    for number in range(len(removed), count):
        assert original is not None
        losses = {}
        for layer in (layer for layer in removable if layer not in removed):
            names = [f"{stack}.{i}" for stack in axis.groups for i in (*removed, layer)]
            with skipped([model.get_submodule(name) for name in names]):
                losses[layer] = distance(task_outputs(model, data, rows), original)
        removed.append(min(losses, key=lambda layer: losses[layer]))
        advance(f"greedy order of {axis.name}", number + 1, count)
    return removed


def _narrows(sizes: AxisSizes) -> bool:
    """Return whether embeddings may become narrower than those that they are compared with."""
    return any(kind_of(name).is_residual for name in sizes)
