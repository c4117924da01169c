"""Batches: which of their columns are inputs of a model, and how rows are counted."""

import math

import torch
from transformers import PreTrainedModel

Batch = dict[str, torch.Tensor]


ROW = "teacher_row"
"""Column, and entry of a batch: which training row this is, where a teacher's answers are looked up by it."""


POSSIBLE = "possible"
"""Entry of a batch: which tokens may be an answer's place."""


NOT_INPUTS = ("labels", ROW, POSSIBLE)


BEFORE_PATCHES = 5
"""Tokens that may stand before those of an image's patches: classes and registers."""


def model_inputs(batch: Batch) -> Batch:
    """The batch without what only losses and metrics need."""
    return {key: value for key, value in batch.items() if key not in NOT_INPUTS}


def label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy over the labels that count; 0, with gradients of 0, where none does.

    Args:
        logits: *Shape:* (..., classes)
        labels: -100 where they do not count. *Shape:* (...)
    """
    flat = labels.flatten()
    total = torch.nn.functional.cross_entropy(logits.flatten(0, -2).float(), flat, reduction="sum")
    return total / (flat != -100).sum().clamp_min(1)


def on_device(model: PreTrainedModel, batch: Batch) -> Batch:
    """Return the batch on the device of a model.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> tiny = BertConfig(hidden_size=8, num_attention_heads=2, intermediate_size=8, num_hidden_layers=1)
        >>> on_device(BertModel(tiny), {"input_ids": torch.tensor([[1, 2]])})["input_ids"].device
        device(type='cpu')
    """
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def as_read_by(model: PreTrainedModel, batch: Batch) -> Batch:
    """Return what a model reads of the batch, on its device; images and sounds in its precision."""
    return {
        key: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
        for key, value in model_inputs(batch).items()
    }


def counted_rows(hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Rows [tokens, width] of the positions that are not padding; all where the mask speaks of other positions."""
    if mask is not None and hidden.shape[:-1] == mask.shape:
        return hidden[mask.bool()]
    return hidden.flatten(0, -2)


def as_map(hidden: torch.Tensor) -> torch.Tensor | None:
    """Hidden states as a map [batch, width, height, width]; None where they are none.

    Maps of square images whose channels come last are known by their first two sides being equal. Of tokens the last
    ones are taken that fill a square: classes and registers come before the patches.
    """
    if hidden.ndim == 4:
        return hidden.movedim(-1, 1) if hidden.shape[1] == hidden.shape[2] != hidden.shape[3] else hidden
    if hidden.ndim != 3:
        return None
    side = math.isqrt(hidden.shape[1])
    others = hidden.shape[1] - side**2
    return hidden[:, others:].mT.reshape(len(hidden), -1, side, side) if others <= BEFORE_PATCHES else None
