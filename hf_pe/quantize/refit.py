"""Refit quantized weights without training: choose better codes and scales in the quantizer's own tensors."""

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
    """Choose codes and scales of quantized layers by the inputs of each; see `hf_pe.quantize.grid.refitted`.

    Args:
        quantized: Quantized model, which is changed in place and loads as before.
        model: Model that it was made from.
        names: Names of its quantized layers.
        data: Data with the calibration rows.
        quantizer: Quantizer that made it, by a method that has a grid.

    Returns:
        Names of the layers that no calibration row reaches; they are not changed.
    """
    quantizer.restore_layout_(quantized)
    unreached = dict.fromkeys(names)
    for name, sums in inputs_of(model, names, data):
        weight = plain_weight(model.get_submodule(name))
        _encode_(quantizer, quantized.get_submodule(name), weight, sums)
        del unreached[name]
    quantizer.remember_layout_(quantized)
    return list(unreached)


def _encode_(quantizer: Quantizer, module: torch.nn.Module, weight: torch.Tensor, sums: Moments) -> None:
    def encode(levels: torch.Tensor, stored: Stored) -> torch.Tensor:
        return refitted(weight.float(), sums.gram, levels, stored, quantizer.block)[0]

    quantizer.encode_(module, encode)
