"""List the linear layers of a model that can be quantized, and those that keep their weights with the reason."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from hf_pe.anatomy import meta_model
from hf_pe.errors import UsageError, listed
from hf_pe.measure import spec_sizes
from hf_pe.model_spec import ModelSpec
from hf_pe.quantizers.base import Quantizer


@dataclass(frozen=True)
class LinearLayers:
    """Hold the linear layers of a model.

    Attributes:
        spec: Model before quantization.
        weights: Number of weights of each layer that can be quantized.
        kept: Names of the layers that keep their weights.
        notes: Sentences about these.
    """

    spec: ModelSpec
    weights: dict[str, int]
    kept: list[str]
    notes: tuple[str, ...]

    @property
    def own_bits(self) -> int:
        """The bits of a weight that is not quantized."""
        dtype: Any = self.spec.config.dtype
        return torch.finfo(dtype).bits

    @property
    def total(self) -> int:
        """The number of weights in all layers that can be quantized."""
        return sum(self.weights.values())

    def with_bits(self, bits: dict[str, float]) -> ModelSpec:
        """Return the model whose layers take the given bits per weight."""
        by_weight = {f"{name}.weight": layer_bits for name, layer_bits in bits.items()}
        return replace(self.spec, bits=self.spec.bits | by_weight)

    def bits_left(self, weight_bytes: int, bits: float, title: str) -> float:
        """Return the bits that a budget leaves above those of the model with all layers quantized.

        Args:
            weight_bytes: Budget for all weights of the model, in bytes.
            bits: Bits of a quantized weight.
            title: Title of the method, for the message.

        Raises:
            UsageError: The budget is smaller than the model with all layers quantized.
        """
        least = int(spec_sizes(self.with_bits(dict.fromkeys(self.weights, bits)))["weight_bytes"])
        if weight_bytes < least:
            raise UsageError(
                f"quantize.weight_bytes: expected at least {least:,} (all {len(self.weights)} layers that can be "
                f"quantized in {title}), got {weight_bytes:,}. Raise the budget, or prune first."
            )
        return 8.0 * (weight_bytes - least)


def linear_layers(spec: ModelSpec, quantizer: Quantizer, method: str, skip: tuple[str, ...]) -> LinearLayers:
    """List the linear layers of a model from its config alone.

    Args:
        spec: Model in the dtype of the weights that are not quantized.
        quantizer: Quantizer to use.
        method: Method of the quantizer.
        skip: Further modules that keep their weights, by full name or last part.

    Raises:
        UsageError: No layer can be quantized.
    """
    model = meta_model(spec.config, spec.model_class)
    kept = quantizer.kept_layers(model, method, skip)
    kept_by_name = quantizer.kept_layers(model, None, skip)
    kept_by_width = [name for name in quantizer.unfit_layers(model, method) if name not in kept_by_name]
    kept_otherwise = [name for name in kept if name not in kept_by_width]
    notes = [f"not quantized: {listed(kept_otherwise, layers_as_one=True)}"] if kept_otherwise else []
    if kept_by_width:
        notes.append(
            f"not quantized because of their widths ({quantizer.unfit_reason}): "
            f"{listed(kept_by_width, layers_as_one=True)}"
        )
    names = quantizer.quantizable_layers(model, kept)
    if not names:
        raise UsageError(
            f"quantize: {spec.model_class.__name__} has no linear layer that {method} can quantize; {'; '.join(notes)}."
        )
    weights = {name: model.get_parameter(f"{name}.weight").numel() for name in names}
    return LinearLayers(spec, weights, kept, tuple(notes))
