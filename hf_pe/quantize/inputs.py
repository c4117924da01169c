"""Compute second moments of the inputs of linear layers, block by block."""

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from hf_pe.calibration import moments, moments_by_block
from hf_pe.dummies.outputs import no_cache
from hf_pe.regression import Moments, pooled
from hf_pe.tasks import TaskData, as_read_by


@torch.no_grad()
def inputs_of(model: PreTrainedModel, names: Sequence[str], data: TaskData) -> Iterator[tuple[str, Moments]]:
    """Yield linear layers with the second moments of their inputs.

    Where each block runs once per forward pass, only the moments of one block are in memory at a time.

    Args:
        model: The model, which is in evaluation mode meanwhile.
        names: Names of linear layers; a layer that the calibration rows do not reach is left out.
        data: Data with the calibration rows.
    """
    modules, what = {name: model.get_submodule(name) for name in names}, "statistics for 4 bits"
    blocks = _execution_order(model, dict.fromkeys(_block(name) for name in names), data)
    each_once = len(set(blocks)) == len(blocks)
    parts = moments_by_block(model, modules, blocks, data, what) if each_once else [moments(model, modules, data, what)]
    for moments_by_layer in parts:
        for name, folds in moments_by_layer.items():
            sums = pooled(folds)
            if sums.count:
                yield name, sums


def _execution_order(model: PreTrainedModel, blocks: dict[str, None], data: TaskData) -> list[str]:
    """Return the blocks in the order in which they run for one row; a block that runs twice occurs twice."""
    order: list[str] = []
    handles = [
        model.get_submodule(name).register_forward_hook(lambda module, args, out, name=name: order.append(name))
        for name in blocks
    ]
    try:
        row = next(data.batches(data.calibration.select([0]), 1))
        model(**as_read_by(model, row), **no_cache(model))
    finally:
        for handle in handles:
            handle.remove()
    return order


def _block(name: str) -> str:
    """Return the name of the block of a list of layers that a module is in; outside of such lists, its own name."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: number + 1])
