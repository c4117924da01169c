"""Sizes: parameters and bytes, of a model or of what its config says."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_pe.model_spec import parameter_count
from hf_pe.quantizers.bnb import plain_layout_


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of all parameters and stored buffers as they are saved, quantization scales included."""
    plain_layout_(model)
    return int(model.get_memory_footprint(return_buffers=False)) + _scale_bytes(model)


def layer_bits(model: PreTrainedModel) -> tuple[float, ...]:
    """Mean bits a parameter takes in each layer of the longest stack, packed weights with their scales."""
    plain_layout_(model)
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    layers = max(stacks, key=len, default=nn.ModuleList())
    return tuple(_mean_bits(layer) for layer in layers)


def _mean_bits(layer: nn.Module) -> float:
    held = sum(p.nbytes for p in layer.parameters()) + _scale_bytes(layer)
    return 8 * held / max(sum(parameter_count(p) for p in layer.parameters()), 1)


def _scale_bytes(module: nn.Module) -> int:
    """Bytes of the scales of all packed parameters."""
    states = [getattr(p, "quant_state", None) for p in module.parameters()]
    return sum(_of_state(state) for state in states if state is not None)


def _of_state(state: Any) -> int:
    found = int(state.absmax.nbytes)
    return found + (int(state.state2.absmax.nbytes) if state.nested else 0)
