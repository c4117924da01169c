"""Second moments for the units of an axis, cached where they fit into memory."""

from collections.abc import Iterator

from hf_pe.anatomy import EVERYWHERE, Axis
from hf_pe.calibration.cache import StatisticsKey
from hf_pe.calibration.experts import expert_moments, expert_moments_by_block
from hf_pe.machine_memory import available_memory
from hf_pe.prune.statistics.moments import consumer_moments, consumer_moments_by_block, moments_bytes
from hf_pe.recipe import StageState
from hf_pe.regression import Moments

MEMORY = 0.5
"""Fraction of the free memory above which the moments of all blocks are computed and used one block at a time."""


def moments_of(state: StageState, axis: Axis, *, weighted: bool) -> Iterator[dict[str, list[Moments]]]:
    """Yield the second moments of the inputs of all linear layers that read the units of `axis`, by slot.

    They come all at once and are cached, or block by block where memory is too small for all.

    Args:
        state: has the model, the calibration rows and the cache.
        axis: the axis.
        weighted: whether each token has its weight (`hf_pe.calibration.moments`) or all count the same.
    """
    model, data = state.model, state.data
    if EVERYWHERE not in axis.groups and moments_bytes(model, axis) > available_memory() * MEMORY:
        yield from consumer_moments_by_block(model, axis, data, weighted=weighted)
        yield from expert_moments_by_block(model, axis, data)
        return

    def compute() -> dict[str, list[Moments]]:
        return consumer_moments(model, axis, data, weighted=weighted) | expert_moments(model, axis, data)

    yield state.statistics.get(model, moments_key(axis, weighted=weighted), compute)


def moments_key(axis: Axis, *, weighted: bool) -> StatisticsKey[dict[str, list[Moments]]]:
    """Return the key under which the second moments for an axis are cached."""
    return StatisticsKey("weighted second moments" if weighted else "second moments", axis.name)
