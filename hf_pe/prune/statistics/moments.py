"""Second moments of the inputs of the linear layers that read the units of an axis."""

from collections.abc import Iterator

from transformers import PreTrainedModel

from hf_pe.anatomy import Axis
from hf_pe.calibration import moments, moments_by_block
from hf_pe.calibration.consumers import consumer_blocks, consumers_of
from hf_pe.regression import FOLDS, Moments
from hf_pe.tasks import TaskData


def consumer_moments(
    model: PreTrainedModel, axis: Axis, data: TaskData, *, weighted: bool = False
) -> dict[str, list[Moments]]:
    """Return the second moments of the inputs of every linear layer that reads units of `axis`, by slot and fold.

    With `weighted`, each token has a weight where the layer's output is added to the residual stream (`added` of
    `hf_pe.calibration.moments`).
    """
    modules = consumers_of(model, axis)
    return moments(
        model, modules, data, f"statistics of {axis.name}", consumer_blocks(axis, modules) if weighted else {}
    )


def consumer_moments_by_block(
    model: PreTrainedModel, axis: Axis, data: TaskData, *, weighted: bool = False
) -> Iterator[dict[str, list[Moments]]]:
    """Yield the moments of `consumer_moments` block by block, in one pass with those of one block in memory."""
    modules = consumers_of(model, axis)
    blocks, what = consumer_blocks(axis, modules), f"statistics of {axis.name}"
    order = list(dict.fromkeys(blocks.values()))
    return moments_by_block(model, modules, order, data, what, blocks if weighted else {})


def moments_bytes(model: PreTrainedModel, axis: Axis) -> int:
    """Return the bytes that the second moments of all blocks take."""
    state = model.state_dict()
    widths = [slot.of(state).shape[slot.dim or 0] for slot in axis.slots if slot.consumes]
    return sum(FOLDS * 4 * width**2 for width in widths)
