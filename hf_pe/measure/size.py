"""Sizes: parameters and bytes, of a model or of what its config says."""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import build_glob_alternation

from hf_pe.anatomy import skeleton
from hf_pe.plans import Sketch
from hf_pe.quantizers.bnb import plain_layout_


class Parameters(NamedTuple):
    """Counts of parameters; a tied tensor counts once."""

    total: int
    without_embeddings: int


def parameters(model: PreTrainedModel) -> Parameters:
    """Count parameters, in all and without the tables of nn.Embedding; packed 4-bit tensors at their real size."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    counts = {id(p): _count(p) for p in model.parameters()}
    return Parameters(sum(counts.values()), sum(n for key, n in counts.items() if key not in tables))


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of all parameters and stored buffers as they are saved, quantization scales included."""
    plain_layout_(model)
    return int(model.get_memory_footprint(return_buffers=False)) + _scale_bytes(model)


def sketch_size(sketch: Sketch) -> dict[str, Any]:
    """The sizes a Plan states, from the config alone."""
    model = skeleton(sketch.config, sketch.model_class)
    counted = parameters(model)
    plain = bits_loaded(model, sketch.config.dtype)
    total = sum(p.numel() * sketch.bits.get(name, plain[name]) for name, p in model.named_parameters())
    return {
        "parameters": counted.total,
        "parameters_without_embeddings": counted.without_embeddings,
        "weight_bytes": round(total / 8),
    }


def bits_loaded(model: PreTrainedModel, dtype: torch.dtype | str | None) -> dict[str, int]:
    """Return by name how many bits each parameter takes once `from_pretrained(dtype=dtype)` has loaded it.

    Modules that the class keeps in float32 take 32.

    Args:
        model: on any device.
        dtype: None is float32.
    """
    loaded: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32
    exceptions: dict[str, torch.dtype] = model._get_dtype_plan(loaded)
    excepted = build_glob_alternation(list(exceptions))[0] if exceptions else None
    return {
        name: 32 if excepted and excepted.search(name) else torch.finfo(loaded).bits
        for name, _ in model.named_parameters()
    }


def layer_bits(model: PreTrainedModel) -> tuple[float, ...]:
    """Mean bits a parameter takes in each layer of the longest stack, packed weights with their scales."""
    plain_layout_(model)
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    layers = max(stacks, key=len, default=nn.ModuleList())
    return tuple(_mean_bits(layer) for layer in layers)


def _mean_bits(layer: nn.Module) -> float:
    held = sum(p.nbytes for p in layer.parameters()) + _scale_bytes(layer)
    return 8 * held / max(sum(_count(p) for p in layer.parameters()), 1)


def _count(parameter: torch.nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()


def _scale_bytes(module: nn.Module) -> int:
    """Bytes of the scales of all packed parameters."""
    states = [getattr(p, "quant_state", None) for p in module.parameters()]
    return sum(_of_state(state) for state in states if state is not None)


def _of_state(state: Any) -> int:
    found = int(state.absmax.nbytes)
    return found + (int(state.state2.absmax.nbytes) if state.nested else 0)
