"""The linear layers of a model: those that can be quantized, those that keep their weights and why."""

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
    """The linear layers of a model.

    Attributes:
        spec: of the model before they are quantized.
        weights: number of weights by layer, of those that can be quantized.
        kept: names of those that keep their weights.
        notes: sentences on these.
    """

    spec: ModelSpec
    weights: dict[str, int]
    kept: list[str]
    notes: tuple[str, ...]

    @property
    def own_bits(self) -> int:
        """Bits of a weight that is not quantized."""
        dtype: Any = self.spec.config.dtype
        return torch.finfo(dtype).bits

    @property
    def total(self) -> int:
        """Number of weights of all layers that can be quantized."""
        return sum(self.weights.values())

    def with_bits(self, bits: dict[str, float]) -> ModelSpec:
        """Return the spec of the model whose layers take so many bits a weight."""
        return replace(self.spec, bits=self.spec.bits | {f"{name}.weight": each for name, each in bits.items()})

    def bits_left(self, weight_bytes: int, bits: float, title: str) -> float:
        """Return the bits that a budget leaves above those of the model with all layers quantized.

        Args:
            weight_bytes: of all weights of the model.
            bits: that a quantized weight takes.
            title: of the method.

        Raises:
            UsageError: none are left.
        """
        least = int(spec_sizes(self.with_bits(dict.fromkeys(self.weights, bits)))["weight_bytes"])
        if weight_bytes < least:
            raise UsageError(
                f"quantize.weight_bytes: expected at least {least:,} (all {len(self.weights)} layers that can be "
                f"packed in {title}), got {weight_bytes:,}. Ask for more, or prune first."
            )
        return 8.0 * (weight_bytes - least)


def linear_layers(spec: ModelSpec, quantizer: Quantizer, method: str, skip: tuple[str, ...]) -> LinearLayers:
    """Return the linear layers, from the config alone.

    Args:
        spec: of the model, in the dtype of what is not quantized.
        quantizer: that quantizes.
        method: of it.
        skip: more modules that keep their weights, by full name or last part.

    Raises:
        UsageError: no layer can be quantized.
    """
    model = meta_model(spec.config, spec.model_class)
    kept = quantizer.kept_layers(model, method, skip)
    by_name = quantizer.kept_layers(model, None, skip)
    unfit = [name for name in quantizer.unfit_layers(model, method) if name not in by_name]
    others = [name for name in kept if name not in unfit]
    notes = [f"kept as they are: {listed(others, layers_as_one=True)}"] if others else []
    if unfit:
        notes.append(f"kept because of their widths ({quantizer.unfit_reason}): {listed(unfit, layers_as_one=True)}")
    names = quantizer.quantizable_layers(model, kept)
    if not names:
        raise UsageError(
            f"quantize: {spec.model_class.__name__} has no linear layer that {method} can pack; {'; '.join(notes)}."
        )
    weights = {name: model.get_parameter(f"{name}.weight").numel() for name in names}
    return LinearLayers(spec, weights, kept, tuple(notes))
