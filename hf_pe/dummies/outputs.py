"""Outputs of a model as plain tensors, and how far two lists of them differ."""

import math
from typing import Any

import torch
from transformers import PreTrainedModel


def outputs_of(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """All floating-point tensors of the model's output, in order; what it draws at random is always the same."""
    return tensors_of(result_of(model, inputs))


def result_of(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> Any:
    """Return the output of a model without gradients; what it draws at random is always the same."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model(**inputs, **no_cache(model))


def tensors_of(result: Any) -> list[torch.Tensor]:
    """All floating-point tensors of a model's output, in order."""
    parts = result.values() if hasattr(result, "values") else result if isinstance(result, tuple) else [result]
    found = [v for v in parts if isinstance(v, torch.Tensor) and v.is_floating_point()]
    inside = (v for part in parts if isinstance(part, tuple) for v in part)  # MGP-STR gives nothing else
    return found or [v for v in inside if isinstance(v, torch.Tensor) and v.is_floating_point()]


def no_cache(model: PreTrainedModel) -> dict[str, bool]:
    """What to pass beside the inputs so that `model` keeps no cache; nothing where it has none."""
    keeps = model.config.get_text_config().to_dict().get("use_cache")
    return {"use_cache": False} if keeps else {}


def difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Return the largest absolute difference, relative to the largest magnitude, over all outputs.

    Infinities of the same sign at the same places are equal: models mask logits with them. Whatever cannot be compared
    gives NaN, which is neither small nor large. Callers state what they require (`not difference(...) <= tolerance`),
    so that NaN fails.

    Args:
        one: outputs that set the scale.
        other: outputs on the same device.

    Returns:
        0.0 for equal outputs; NaN where their number or shapes differ, there are none, or any value is not finite.
    """
    if not one or len(one) != len(other):
        return math.nan
    gaps = [_relative_gap(a, b) for a, b in zip(one, other, strict=True)]
    return max(gaps) if all(math.isfinite(gap) for gap in gaps) else math.nan


def _relative_gap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of one pair of tensors; not finite where they cannot be compared."""
    if one.shape != other.shape:
        return math.nan
    if not one.numel():
        return 0.0
    a, b = one.float(), other.float()
    masked = a.isinf() & (a == b)
    gap, scale = (a - b).masked_fill(masked, 0).abs().max(), a.masked_fill(masked, 0).abs().max()
    return float(gap / scale.clamp_min(1e-12))
