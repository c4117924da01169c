"""Recognize linear layers, quantized or not, and let models that were loaded from quantized files be saved."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer, quantized or not."""
    return isinstance(module, (nn.Linear, Conv1D))


def plain_weight(module: Any) -> torch.Tensor:
    """Return the weight of a linear layer that is not quantized.

    Returns:
        *Shape:* (outputs, inputs)
    """
    weight: torch.Tensor = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def plain_linear_layers(model: PreTrainedModel, kept: Sequence[str] = ()) -> list[str]:
    """Return the names of the linear layers that transformers lets a quantizer replace, without those in `kept`."""
    kinds = {name: type(module) for name, module in model.named_modules() if name not in kept}
    return [name for name, kind in kinds.items() if kind is nn.Linear or issubclass(kind, Conv1D)]


def keep_savable_(model: Any) -> None:
    """Let a model that was loaded from quantized files be saved again.

    transformers records how it converted the tensors while reading them, and reverses that while saving. The conversion
    of quantized tensors has no reverse, but needs none: `state_dict` has codes and scales under their saved names.
    """
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is not None:
        model._weight_conversions = [conversion for conversion in conversions if _is_reversible(conversion)]


def _is_reversible(conversion: Any) -> bool:
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True
