"""The quantizers, one line each, and what holds for a model whichever of them has quantized it."""

from collections.abc import Iterator, Mapping
from typing import Annotated

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.adapters import adapters_aside, carried, merged
from hf_pe.anatomy import METHOD
from hf_pe.errors import UsageError, nearest
from hf_pe.quantizers.base import Quantizer
from hf_pe.quantizers.bnb import BitsAndBytes
from hf_pe.quantizers.layers import plain_weight
from hf_pe.registered_names import RegisteredName
from hf_pe.surgery import in_dtype

QUANTIZERS: dict[str, Quantizer] = {quantizer.name: quantizer for quantizer in (BitsAndBytes(),)}
"""By the name of the library."""


class _Methods(Mapping[str, Quantizer]):
    """The quantizer of each method of all `QUANTIZERS`, as they are at that moment."""

    def __getitem__(self, method: str) -> Quantizer:
        for quantizer in QUANTIZERS.values():
            if method in quantizer.methods:
                return quantizer
        raise KeyError(method)

    def __iter__(self) -> Iterator[str]:
        return (method for quantizer in QUANTIZERS.values() for method in quantizer.methods)

    def __len__(self) -> int:
        return sum(1 for _ in self)


METHODS: Mapping[str, Quantizer] = _Methods()
"""The quantizer that has a method, by the name of the method."""
MethodName = Annotated[str, RegisteredName(METHODS)]
"""A name of `METHODS`."""


def require_method(name: str) -> None:
    """Refuse a name that is no method of a quantizer.

    Raises:
        UsageError: for that reason.
    """
    if name not in METHODS:
        raise UsageError(f"method: expected one of {', '.join(METHODS)}; got '{name}'.{nearest(name, METHODS)}")


def quantized_by(config: PretrainedConfig) -> str | None:
    """Return what a config calls the method that the weights are quantized by; None where they are plain."""
    config_value = getattr(config, "quantization_config", None)
    if not config_value:
        return None
    method = config_value.get("quant_method") if isinstance(config_value, dict) else config_value.quant_method
    return None if method == METHOD else str(getattr(method, "value", method))


def quantizer_of(config: PretrainedConfig) -> Quantizer | None:
    """Return the quantizer that can dequantize the weights; None where they are plain or another library's."""
    name = quantized_by(config)
    return next((quantizer for quantizer in QUANTIZERS.values() if name in quantizer.config_names), None)


def quantizer_names() -> str:
    """Return the names of all quantizers, for messages: "a or b"."""
    return " or ".join(QUANTIZERS)


def require_plain(config: PretrainedConfig) -> None:
    """Refuse a model that is quantized already.

    Raises:
        UsageError: it is; says by what.
    """
    method = quantized_by(config)
    if method is not None:
        raise UsageError(
            f"The model is quantized already ({method}): packed weights cannot be cut, "
            "trained or packed again. Give its 16- or 32-bit original, or unpack it first (hf-pe dequantize)."
        )


@torch.no_grad()
def dequantized(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return the plain model that a quantized one stands for, with the adapters on it merged.

    What adapters learned is added in float32; the sum is rounded once, to `dtype`.

    Args:
        model: quantized by one of `QUANTIZERS`; stays as it is.
        dtype: of the weights.
    """
    quantizer = quantizer_of(model.config)
    assert quantizer is not None, f"no quantizer can dequantize {quantized_by(model.config)}"
    adapter = carried(model)
    if adapter is None:
        return quantizer.dequantized(model, dtype)
    with adapters_aside(model):
        plain = quantizer.dequantized(model, torch.float32)
    return in_dtype(merged(plain, adapter), dtype)


def dequantized_weight(module: nn.Module) -> torch.Tensor:
    """Return the weight that a quantized linear layer stands for; of another layer its own.

    Returns:
        *Shape:* (outputs, inputs)
    """
    quantizer = next((each for each in QUANTIZERS.values() if each.is_quantized(module)), None)
    return plain_weight(module) if quantizer is None else quantizer.weight(module)


def is_quantized(model: nn.Module) -> bool:
    """Return whether a module of the model, or inside it, holds a quantized weight, whoever put it there."""
    quantizers = QUANTIZERS.values()
    return any(each.is_quantized(module) for module in model.modules() for each in quantizers) or any(
        each.parameter_count(parameter) is not None for parameter in model.parameters() for each in quantizers
    )


def remember_layout_(model: nn.Module) -> None:
    """Let `restore_layout_` bring back how quantized tensors lie now, before the model is run."""
    for quantizer in QUANTIZERS.values():
        quantizer.remember_layout_(model)


def restore_layout_(model: nn.Module) -> None:
    """Bring quantized tensors back into the layout in which they are saved and trained."""
    for quantizer in QUANTIZERS.values():
        quantizer.restore_layout_(model)


def scale_bytes(module: nn.Module) -> int:
    """Return the bytes of scales in a module that are no parameters of it."""
    return sum(quantizer.scale_bytes(module) for quantizer in QUANTIZERS.values())


def parameter_count(parameter: nn.Parameter) -> int:
    """Return how many weights a parameter stands for, a quantized one dequantized."""
    counts = (quantizer.parameter_count(parameter) for quantizer in QUANTIZERS.values())
    return next((count for count in counts if count is not None), parameter.numel())


def shape_attributes() -> list[str]:
    """Return the paths below quantized parameters to the shapes of the weights that they stand for."""
    return [quantizer.shape_attribute for quantizer in QUANTIZERS.values() if quantizer.shape_attribute]
