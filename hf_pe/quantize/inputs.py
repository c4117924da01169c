"""What flows into linear layers, block by block."""

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from hf_pe.calibration import moments, moments_by_block
from hf_pe.dummies.outputs import no_cache
from hf_pe.regression import Moments, pooled
from hf_pe.tasks import TaskData, as_read_by


@torch.no_grad()
def inputs_of(model: PreTrainedModel, names: Sequence[str], data: TaskData) -> Iterator[tuple[str, Moments]]:
    """Layers and the moments of what flows into them, those of one block in memory at a time where each runs once.

    Args:
        model: in evaluation mode meanwhile.
        names: of linear layers; one that no calibration row comes by is left out.
        data: calibration rows.
    """
    modules, what = {name: model.get_submodule(name) for name in names}, "statistics for 4 bits"
    blocks = _as_they_run(model, dict.fromkeys(_block(name) for name in names), data)
    once = len(set(blocks)) == len(blocks)
    parts = moments_by_block(model, modules, blocks, data, what) if once else [moments(model, modules, data, what)]
    for moments_by_layer in parts:
        for name, folds in moments_by_layer.items():
            sums = pooled(folds)
            if sums.count:
                yield name, sums


def _as_they_run(model: PreTrainedModel, blocks: dict[str, None], data: TaskData) -> list[str]:
    """Blocks in the order in which one row passes them; one that it passes twice is there twice."""
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
    """The block of a stack that a module lies in; outside of stacks, itself."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: number + 1])
