"""Refit of quantized weights, without training: the quantizer's own tensors, with better codes in them."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from hf_pe.quantize.grid import refitted
from hf_pe.quantize.inputs import inputs_of
from hf_pe.quantizers.base import Quantizer, Stored
from hf_pe.quantizers.layers import plain_weight
from hf_pe.regression import Moments
from hf_pe.tasks import TaskData


@torch.no_grad()
def refit_(
    quantized: PreTrainedModel, model: PreTrainedModel, names: Sequence[str], data: TaskData, quantizer: Quantizer
) -> list[str]:
    """Choose codes and scales of quantized layers by what flows into them; see `hf_pe.quantize.grid.refitted`.

    Args:
        quantized: changed in place; loads as before, anywhere.
        model: the one that it was made from.
        names: of its quantized layers.
        data: calibration rows.
        quantizer: that made it, by a method that has a grid.

    Returns:
        Those that no calibration row came by: they stay as they were.
    """
    quantizer.restore_layout_(quantized)
    left = dict.fromkeys(names)
    for name, sums in inputs_of(model, names, data):
        weight = plain_weight(model.get_submodule(name))
        _encode_(quantizer, quantized.get_submodule(name), weight, sums)
        del left[name]
    quantizer.remember_layout_(quantized)
    return list(left)


def _encode_(quantizer: Quantizer, module: torch.nn.Module, weight: torch.Tensor, sums: Moments) -> None:
    def encode(levels: torch.Tensor, stored: Stored) -> torch.Tensor:
        return refitted(weight.float(), sums.gram, levels, stored, quantizer.block)[0]

    quantizer.encode_(module, encode)
