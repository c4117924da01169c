"""List the quantizers, and treat quantized models alike whichever quantizer made them."""

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
"""The quantizers, by the name of their library."""


class _Methods(Mapping[str, Quantizer]):
    """Map each method to its quantizer, always by the current content of `QUANTIZERS`."""

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
"""The quantizers, by the names of their methods."""
MethodName = Annotated[str, RegisteredName(METHODS)]
"""A name of `METHODS`."""


def require_method(name: str) -> None:
    """Refuse a name that is no method of a quantizer."""
    if name not in METHODS:
        raise UsageError(f"method: expected one of {', '.join(METHODS)}; got '{name}'.{nearest(name, METHODS)}")


def quantized_by(config: PretrainedConfig) -> str | None:
    """Return the `quant_method` in a config; None where the weights are not quantized."""
    config_value = getattr(config, "quantization_config", None)
    if not config_value:
        return None
    method = config_value.get("quant_method") if isinstance(config_value, dict) else config_value.quant_method
    return None if method == METHOD else str(getattr(method, "value", method))


def quantizer_of(config: PretrainedConfig) -> Quantizer | None:
    """Return the quantizer that can dequantize the weights; None where they are not quantized or no quantizer can."""
    name = quantized_by(config)
    return next((quantizer for quantizer in QUANTIZERS.values() if name in quantizer.config_names), None)


def quantizer_names() -> str:
    """Return the names of all quantizers, for messages: "a or b"."""
    return " or ".join(QUANTIZERS)


def require_plain(config: PretrainedConfig) -> None:
    """Refuse a model that is quantized already."""
    method = quantized_by(config)
    if method is not None:
        raise UsageError(
            f"The model is quantized already ({method}): quantized weights cannot be pruned, trained or quantized "
            "again. Give its 16- or 32-bit original, or dequantize it first (hf-pe dequantize)."
        )


@torch.no_grad()
def dequantized(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return the dequantized copy of a model, with its adapters merged.

    Adapters are added in float32, and the sum is rounded once, to `dtype`.

    Args:
        model: Model that one of `QUANTIZERS` has quantized; it is not changed.
        dtype: Dtype of the weights in the copy.
    """
    quantizer = quantizer_of(model.config)
    assert quantizer is not None, f"no quantizer can dequantize {quantized_by(model.config)}"
    adapter = carried(model)
    if adapter is None:
        return quantizer.dequantized(model, dtype)
    with adapters_aside(model):
        base = quantizer.dequantized(model, torch.float32)
    return in_dtype(merged(base, adapter), dtype)


def dequantized_weight(module: nn.Module) -> torch.Tensor:
    """Return the dequantized weight of a quantized linear layer, or the weight of one that is not quantized.

    Returns:
        *Shape:* (outputs, inputs)
    """
    owner = next((quantizer for quantizer in QUANTIZERS.values() if quantizer.is_quantized(module)), None)
    return plain_weight(module) if owner is None else owner.weight(module)


def is_quantized(model: nn.Module) -> bool:
    """Return whether the model has a quantized weight, from any quantizer."""
    quantizers = QUANTIZERS.values()
    return any(quantizer.is_quantized(module) for module in model.modules() for quantizer in quantizers) or any(
        quantizer.parameter_count(parameter) is not None for parameter in model.parameters() for quantizer in quantizers
    )


def remember_layout_(model: nn.Module) -> None:
    """Record the layout of quantized tensors before the model is run, for `restore_layout_`."""
    for quantizer in QUANTIZERS.values():
        quantizer.remember_layout_(model)


def restore_layout_(model: nn.Module) -> None:
    """Restore the layout of quantized tensors in which they are saved and trained."""
    for quantizer in QUANTIZERS.values():
        quantizer.restore_layout_(model)


def scale_bytes(module: nn.Module) -> int:
    """Return the bytes of the scales of a module that are not parameters."""
    return sum(quantizer.scale_bytes(module) for quantizer in QUANTIZERS.values())


def parameter_count(parameter: nn.Parameter) -> int:
    """Return the number of weights in a parameter, counted as before quantization."""
    counts = (quantizer.parameter_count(parameter) for quantizer in QUANTIZERS.values())
    return next((count for count in counts if count is not None), parameter.numel())


def shape_attributes() -> list[str]:
    """Return the paths from quantized parameters to the shapes of their weights before quantization."""
    return [quantizer.shape_attribute for quantizer in QUANTIZERS.values() if quantizer.shape_attribute]
