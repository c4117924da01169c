"""Repair of packed 4-bit weights, without training: bitsandbytes' own tensors, with better codes in them."""

from collections.abc import Sequence
from typing import Any

import bitsandbytes.functional as bnb
import torch
from transformers import PreTrainedModel

from hf_pe.quantize.grid import repaired
from hf_pe.quantize.inputs import inputs_of
from hf_pe.quantizers.bnb import OUTER_BLOCK, plain_layout_, plain_weight, remember_scales_
from hf_pe.regression import Moments
from hf_pe.tasks import TaskData


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
    for name, sums in inputs_of(model, names, data):
        _store_(packed.get_submodule(name).weight, plain_weight(model.get_submodule(name)), sums)
        del left[name]
    remember_scales_(packed)
    return list(left)


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
