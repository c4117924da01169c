"""Describes a model that is known without weights, and computes its sizes from its config alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import build_glob_alternation

from hf_pe.anatomy import meta_model


@dataclass(frozen=True)
class ModelSpec:
    """Describe a model without weights, which a dry run hands from stage to stage.

    Attributes:
        config: of the model.
        model_class: the class that is built from it.
        bits: bits that a weight takes, by parameter name, where these are not the dtype's.
        pixels: a side, or [height, width], of the images that its processor makes, where the config states no size.
    """

    config: PretrainedConfig
    model_class: type[PreTrainedModel]
    bits: dict[str, float] = field(default_factory=dict)
    pixels: Any = None


class Parameters(NamedTuple):
    """Count parameters; a tied tensor counts once.

    Attributes:
        total: number of all parameters.
        without_embeddings: number of those outside the tables of nn.Embedding.
    """

    total: int
    without_embeddings: int


def counted_parameters(model: PreTrainedModel, count: Callable[[nn.Parameter], int]) -> Parameters:
    """Count parameters, in all and without the tables of nn.Embedding.

    Args:
        model: on any device.
        count: returns how many weights a parameter stands for.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    counts = {id(p): count(p) for p in model.parameters()}
    return Parameters(sum(counts.values()), sum(n for key, n in counts.items() if key not in tables))


def spec_sizes(spec: ModelSpec) -> dict[str, Any]:
    """Return the sizes that a `Plan` states, by its fields, from the config alone."""
    model = meta_model(spec.config, spec.model_class)
    counted = counted_parameters(model, nn.Parameter.numel)
    plain = bits_loaded(model, spec.config.dtype)
    total = sum(p.numel() * spec.bits.get(name, plain[name]) for name, p in model.named_parameters())
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
