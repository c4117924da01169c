"""Selects the positions of logits and hidden states that count, and computes means over them."""

from typing import Any

import torch

from hf_pe.distill.losses.logits import Logits, TopKLogits

Signals = dict[str, Any]


def mean_of_rows(values: torch.Tensor) -> torch.Tensor:
    """Return the mean of all entries; 0 if there are none."""
    return values.sum() / max(values.numel(), 1)


def masked_mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the mean of `values` over the positions where `mask` is not 0; over all positions if it is None."""
    if mask is None:
        return values.mean()
    factors = mask.to(values.dtype)
    return (values * factors).sum() / factors.sum().clamp_min(1)


def counted(signals: Signals, masked: Signals) -> Any:
    """Return the logits [positions, classes] of the positions that count; a cache has only these.

    Args:
        signals: have the logits.
        masked: have the mask: the student's signals, also for the logits of a teacher.
    """
    logits: Logits = signals["logits"]
    if isinstance(logits, TopKLogits):
        return logits
    mask = positions(masked)
    if mask is None or signals.get("only_counted"):
        return logits.flatten(0, -2)
    return logits[mask.bool()]


def counted_features(features: torch.Tensor, signals: Signals) -> torch.Tensor:
    """Return the features [positions, width] of the positions whose logits count."""
    mask = positions(signals)
    return features.flatten(0, -2) if mask is None else features[mask.bool()]


def positions(signals: Signals) -> torch.Tensor | None:
    """Return the mask of the logits' positions; None if there is one prediction per example."""
    mask = signals.get("mask")
    return mask if mask is not None and mask.shape == signals["logits"].shape[:-1] else None
