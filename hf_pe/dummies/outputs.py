"""Reads a model's outputs as plain tensors, and measures how far two lists of them differ."""

import math
from typing import Any

import torch
from transformers import PreTrainedModel


def outputs_of(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return the floating-point tensors of a model's output, in order; see `result_of`."""
    return tensors_of(result_of(model, inputs))


def result_of(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> Any:
    """Return the output of a model, computed without gradients and with a fixed seed."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model(**inputs, **no_cache(model))


def tensors_of(result: Any) -> list[torch.Tensor]:
    """Return the floating-point tensors of a model's output, in order."""
    parts = result.values() if hasattr(result, "values") else result if isinstance(result, tuple) else [result]
    tensors = [v for v in parts if isinstance(v, torch.Tensor) and v.is_floating_point()]
    inside = (v for part in parts if isinstance(part, tuple) for v in part)  # MGP-STR returns tuples only
    return tensors or [v for v in inside if isinstance(v, torch.Tensor) and v.is_floating_point()]


def no_cache(model: PreTrainedModel) -> dict[str, bool]:
    """Return the keyword argument that keeps `model` from returning a cache; nothing where it has none."""
    has_cache = model.config.get_text_config().to_dict().get("use_cache")
    return {"use_cache": False} if has_cache else {}


def difference(reference: list[torch.Tensor], outputs: list[torch.Tensor]) -> float:
    """Return the largest absolute difference, relative to the largest magnitude, over all outputs.

    Infinities of the same sign at the same positions are equal: models mask logits with them. Outputs that cannot be
    compared give NaN, which is neither small nor large. Callers state what they require
    (`not difference(...) <= tolerance`), so that NaN fails.

    Args:
        reference: outputs that set the scale.
        outputs: as many, on the same device.

    Returns:
        0.0 for equal outputs; NaN where their number or shapes differ, there are none, or any value is not finite.
    """
    if not reference or len(reference) != len(outputs):
        return math.nan
    gaps = [_relative_gap(a, b) for a, b in zip(reference, outputs, strict=True)]
    return max(gaps) if all(math.isfinite(gap) for gap in gaps) else math.nan


def _relative_gap(reference: torch.Tensor, output: torch.Tensor) -> float:
    """Return the relative difference of two tensors; not finite where they cannot be compared."""
    if reference.shape != output.shape:
        return math.nan
    if not reference.numel():
        return 0.0
    a, b = reference.float(), output.float()
    masked = a.isinf() & (a == b)
    gap, scale = (a - b).masked_fill(masked, 0).abs().max(), a.masked_fill(masked, 0).abs().max()
    return float(gap / scale.clamp_min(1e-12))
