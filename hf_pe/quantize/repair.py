"""Repair of packed 4-bit weights, without training: bitsandbytes' own tensors, with better codes in them."""

from collections.abc import Iterator, Sequence
from typing import Any

import bitsandbytes.functional as bnb
import torch
from transformers import PreTrainedModel

from hf_pe.calibration import moments, moments_by_block
from hf_pe.instance import no_cache
from hf_pe.packing import OUTER_BLOCK, plain_layout_, plain_weight, remember_scales_
from hf_pe.quantize.grid import repaired
from hf_pe.regression import Moments, pooled
from hf_pe.tasks import TaskData, as_read_by


@torch.no_grad()
def repair_(packed: PreTrainedModel, model: PreTrainedModel, names: Sequence[str], data: TaskData) -> list[str]:
    """Choose codes and scales of packed layers by what flows into them; see `hf_pe.quantize.grid.repaired`.

    Args:
        packed: changed in place; loads as before, anywhere.
        model: the one it was packed from.
        names: of its 4-bit layers.
        data: calibration rows.

    Returns:
        Those that no calibration row came by: they stay as they were.
    """
    plain_layout_(packed)
    left = dict.fromkeys(names)
    for found in _inputs(model, names, data):
        for name, folds in found.items():
            sums = pooled(folds)
            if sums.count:
                _store_(packed.get_submodule(name).weight, plain_weight(model.get_submodule(name)), sums)
                del left[name]
    remember_scales_(packed)
    return list(left)


def _inputs(model: PreTrainedModel, names: Sequence[str], data: TaskData) -> Iterator[dict[str, list[Moments]]]:
    """Moments of what flows into layers, one block in memory at a time where each runs once."""
    modules, what = {name: model.get_submodule(name) for name in names}, "statistics for 4 bits"
    blocks = _as_they_run(model, dict.fromkeys(_block(name) for name in names), data)
    if len(set(blocks)) < len(blocks):
        yield moments(model, modules, data, what)
    else:
        yield from moments_by_block(model, modules, blocks, data, what)


def _as_they_run(model: PreTrainedModel, blocks: dict[str, None], data: TaskData) -> list[str]:
    """Blocks in the order in which one row passes them; one that it passes twice is there twice."""
    found: list[str] = []
    handles = [
        model.get_submodule(name).register_forward_hook(lambda module, args, out, name=name: found.append(name))
        for name in blocks
    ]
    try:
        row = next(data.batches(data.calibration.select([0]), 1))
        model(**as_read_by(model, row), **no_cache(model))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _block(name: str) -> str:
    """The block of a stack that a module lies in; outside of stacks, itself."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: number + 1])


def _store_(packed: Any, weight: torch.Tensor, sums: Moments) -> None:
    """Exchange codes and scales of a packed weight, two codes a byte, the first one in the higher half."""
    state = packed.quant_state
    levels = state.code.float()

    def stored(scales: torch.Tensor) -> torch.Tensor:
        if not state.nested:
            state.absmax = scales.flatten()
            return scales
        state.offset = scales.mean()
        state.absmax, state.state2 = bnb.quantize_blockwise(scales.flatten() - state.offset, blocksize=OUTER_BLOCK)
        found: torch.Tensor = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
        return found.view_as(scales)

    codes, _ = repaired(weight.float(), sums.gram, levels, stored)
    pairs = codes.to(torch.uint8).flatten()
    halves = (pairs[::2] << 4 | pairs[1::2])[:, None].contiguous()
    packed.data = halves.flatten().view(packed.dtype).view(packed.shape)
