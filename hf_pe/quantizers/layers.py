"""Linear layers, quantized or not, and what loading leaves in a model that was quantized."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def is_linear(module: nn.Module) -> bool:
    """Return whether it is a linear layer, quantized or not."""
    return isinstance(module, (nn.Linear, Conv1D))


def plain_weight(module: Any) -> torch.Tensor:
    """Return the weight of a linear layer that is not quantized.

    Returns:
        *Shape:* (outputs, inputs)
    """
    weight: torch.Tensor = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def plain_linear_layers(model: PreTrainedModel, kept: Sequence[str] = ()) -> list[str]:
    """Return the names of the linear layers that transformers lets a quantizer exchange, without those in `kept`."""
    kinds = {name: type(module) for name, module in model.named_modules() if name not in kept}
    return [name for name, kind in kinds.items() if kind is nn.Linear or issubclass(kind, Conv1D)]


def keep_savable_(model: Any) -> None:
    """Let a model that was loaded from quantized files be saved again.

    transformers keeps how it read the files, to write them back in reverse; reading quantized tensors has no reverse.
    None is needed, since `state_dict` gives codes and scales under the names that are saved.
    """
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is not None:
        model._weight_conversions = [each for each in conversions if _is_reversible(each)]


def _is_reversible(conversion: Any) -> bool:
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True
