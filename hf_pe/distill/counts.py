"""Counts the rows, predictions, labels and tokens of a batch, over which losses are means.

An optimizer step may consist of several batches, one after another (gradient accumulation) and in parallel (processes).
If they have different numbers of tokens, the mean over all tokens is not the mean of the batches' means, and each batch
has to be weighted by its count.
"""

from typing import Literal

import torch

from hf_pe.tasks import Batch, Task

Unit = Literal["rows", "predictions", "labels", "tokens", "batches"]
"""The unit that a loss is a mean over: rows; positions with a prediction; those of them with a label; tokens whose
hidden states are compared; or batches, for losses that compare the rows of a batch with each other."""
UNITS: tuple[Unit, ...] = ("rows", "predictions", "labels", "tokens", "batches")


def count(task: Task, batch: Batch) -> torch.Tensor:
    """Return how many of each of `UNITS` a batch has.

    Args:
        task: whose collator made it.
        batch: model inputs and labels.

    Returns:
        int64. *Shape:* (units,)
    """
    first = next(iter(batch.values()))
    rows = torch.tensor(len(first), device=first.device)
    predictions, labelled = _predictions(task, batch, rows)
    tokens = predictions if "decoder_input_ids" in batch else _tokens(batch, rows)
    return torch.stack([rows, predictions, labelled, tokens, torch.ones_like(rows)])


def _predictions(task: Task, batch: Batch, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the number of predictions, and the number of those with a label."""
    labels = batch.get("labels")
    if task.predicts_tokens:
        labelled = task.predicted(batch)[0].sum()
        return labelled, labelled
    if labels is None or labels.ndim > 2 or labels.is_floating_point():
        return rows, rows
    labelled = (labels != -100).sum()
    return (rows, labelled) if labels.ndim == 1 else (labelled, labelled)


def _tokens(batch: Batch, rows: torch.Tensor) -> torch.Tensor:
    """Return the number of tokens that are not padding; the number of rows if the model reads no tokens."""
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    if mask is not None and mask.ndim == 2:
        return mask.sum()
    return rows if ids is None else torch.full_like(rows, ids.numel())
