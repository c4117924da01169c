"""Means over the positions that count."""

from typing import Any

import torch

from hf_pe.distill.losses.logits import Logits, TopKLogits

Signals = dict[str, Any]


def mean_of_rows(values: torch.Tensor) -> torch.Tensor:
    """Return the mean of all entries; 0 where there are none."""
    return values.sum() / max(values.numel(), 1)


def masked_mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the mean of values over the positions that `mask` counts; over all without one."""
    if mask is None:
        return values.mean()
    counted = mask.to(values.dtype)
    return (values * counted).sum() / counted.sum().clamp_min(1)


def counted(signals: Signals, masked: Signals) -> Any:
    """Return the logits [positions, classes] of the positions that count; what a cache gives has no others."""
    logits: Logits = signals["logits"]
    if isinstance(logits, TopKLogits):
        return logits
    mask = positions(masked)
    if mask is None or signals.get("only_counted"):
        return logits.flatten(0, -2)
    return logits[mask.bool()]


def places(features: torch.Tensor, signals: Signals) -> torch.Tensor:
    """Return the rows [places, width] of features where the logits count."""
    mask = positions(signals)
    return features.flatten(0, -2) if mask is None else features[mask.bool()]


def positions(signals: Signals) -> torch.Tensor | None:
    """Return the mask of the logits' positions; None where there is one prediction per example."""
    mask = signals.get("mask")
    return mask if mask is not None and mask.shape == signals["logits"].shape[:-1] else None
