"""Lets each layer of a model with several dtypes compute in the dtype of its own weights.

Models of transformers assume one dtype: a head in float32 behind layers in bfloat16 raises an error at its first input.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def align_dtypes_(model: nn.Module) -> None:
    """Cast the inputs of each layer to the dtype of its weights from now on, where the two differ."""
    for layer in _layers(model):
        if _cast_inputs not in layer._forward_pre_hooks.values():
            layer.register_forward_pre_hook(_cast_inputs)


@contextmanager
def aligned_dtypes(model: nn.Module) -> Iterator[None]:
    """Cast the inputs of each layer as `align_dtypes_` does, inside the block alone."""
    handles = [layer.register_forward_pre_hook(_cast_inputs) for layer in _layers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers(model: nn.Module) -> list[nn.Module]:
    """Return the modules without children that have a floating-point weight."""
    return [
        module
        for module in model.modules()
        if not any(module.children())
        and isinstance(weight := getattr(module, "weight", None), nn.Parameter)
        and weight.is_floating_point()
    ]


def _cast_inputs(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = layer.get_parameter("weight").dtype
    return tuple(
        value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value for value in inputs
    )
