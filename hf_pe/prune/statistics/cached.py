"""Second moments of what reads the units of an axis, cached where they fit into memory."""

from collections.abc import Iterator

from hf_pe.anatomy import EVERYWHERE, Axis
from hf_pe.calibration.cache import StatisticsKey
from hf_pe.calibration.experts import expert_moments, expert_moments_by_block
from hf_pe.machine_memory import available_memory
from hf_pe.prune.statistics.moments import consumer_moments, consumer_moments_by_block, moments_bytes
from hf_pe.recipe import StageState
from hf_pe.regression import Moments

MEMORY = 0.5
"""Of the free memory: where the moments of all blocks would take more, they are made and used block by block."""


def moments_of(state: StageState, axis: Axis, *, weighted: bool) -> Iterator[dict[str, list[Moments]]]:
    """Yield second moments of what reads `axis`: all at once and cached, or by block where memory is too small."""
    model, data = state.model, state.data
    if EVERYWHERE not in axis.groups and moments_bytes(model, axis) > available_memory() * MEMORY:
        yield from consumer_moments_by_block(model, axis, data, weighted=weighted)
        yield from expert_moments_by_block(model, axis, data)
        return

    def gathered() -> dict[str, list[Moments]]:
        return consumer_moments(model, axis, data, weighted=weighted) | expert_moments(model, axis, data)

    yield state.statistics.get(model, moments_key(axis, weighted=weighted), gathered)


def moments_key(axis: Axis, *, weighted: bool) -> StatisticsKey[dict[str, list[Moments]]]:
    """Return the key of the second moments of what reads `axis`, by tensor; `weighted` by token."""
    return StatisticsKey("weighted second moments" if weighted else "second moments", axis.name)
