"""Sizes: parameters and bytes, of a model or of what its config says."""

from torch import nn
from transformers import PreTrainedModel

from hf_pe.model_spec import Parameters, counted_parameters
from hf_pe.quantizers.registry import parameter_count, restore_layout_, scale_bytes


def parameters(model: PreTrainedModel) -> Parameters:
    """Count parameters, in all and without the tables of nn.Embedding; quantized tensors at their real size."""
    return counted_parameters(model, parameter_count)


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of all parameters and stored buffers as they are saved, quantization scales included."""
    restore_layout_(model)
    return int(model.get_memory_footprint(return_buffers=False)) + scale_bytes(model)


def layer_bits(model: PreTrainedModel) -> tuple[float, ...]:
    """Mean bits a parameter takes in each layer of the longest stack, packed weights with their scales."""
    restore_layout_(model)
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    layers = max(stacks, key=len, default=nn.ModuleList())
    return tuple(_mean_bits(layer) for layer in layers)


def _mean_bits(layer: nn.Module) -> float:
    held = sum(p.nbytes for p in layer.parameters()) + scale_bytes(layer)
    return 8 * held / max(sum(parameter_count(p) for p in layer.parameters()), 1)
