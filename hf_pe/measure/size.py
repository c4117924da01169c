"""Counts the parameters and the bytes of a model's weights."""

from torch import nn
from transformers import PreTrainedModel

from hf_pe.model_spec import Parameters, counted_parameters
from hf_pe.quantizers.registry import parameter_count, restore_layout_, scale_bytes


def parameters(model: PreTrainedModel) -> Parameters:
    """Count the parameters, with and without those of nn.Embedding; quantized tensors count by their unpacked shape."""
    return counted_parameters(model, parameter_count)


def weight_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of all parameters and stored buffers as they are saved, with the scales of quantized weights."""
    restore_layout_(model)
    return int(model.get_memory_footprint(return_buffers=False)) + scale_bytes(model)


def layer_bits(model: PreTrainedModel) -> tuple[float, ...]:
    """Return the mean bits per parameter in each layer of the longest stack, with the scales of quantized weights."""
    restore_layout_(model)
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    layers = max(stacks, key=len, default=nn.ModuleList())
    return tuple(_mean_bits(layer) for layer in layers)


def _mean_bits(layer: nn.Module) -> float:
    size_bytes = sum(p.nbytes for p in layer.parameters()) + scale_bytes(layer)
    return 8 * size_bytes / max(sum(parameter_count(p) for p in layer.parameters()), 1)
