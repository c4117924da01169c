"""The outputs of a model on a few rows, and the distance between the outputs of two models."""

import math

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from hf_pe.calibration.hooks import BATCH
from hf_pe.errors import NotFiniteError
from hf_pe.tasks import TaskData, kl_divergence, label_losses, on_device, token_head

ROWS = 64
"""Rows that outputs are computed on at most; rows that do not calibrate, where there are as many of them."""
LEAST = 2
"""Rows that outputs are computed on at least, however long they are."""

TaskOutputs = tuple[str, torch.Tensor]
"""The name of what is compared ("logits", "embeddings" or "loss"), and its values, row by row."""


def rows_within(data: TaskData, tokens: int) -> int:
    """Return how many rows hold about `tokens` tokens, from `LEAST` to `ROWS`; `ROWS` where rows are no tokens."""
    length = len(data.train[0].get("input_ids", ())) or 1
    return min(max(tokens // length, LEAST), ROWS)


@torch.no_grad()
def task_outputs(model: PreTrainedModel, data: TaskData, rows: int = ROWS, *, by_token: bool = False) -> TaskOutputs:
    """Return the outputs of a model: log-probabilities, embeddings, or the loss where tokens are predicted.

    Args:
        model: the model.
        data: has the rows; those that do not calibrate are taken where there are as many as `rows`.
        rows: how many rows.
        by_token: where tokens are predicted, return the log-probabilities of each, [positions, vocabulary], in place
            of the loss.

    Returns:
        The name of the output, and its values with one row for each example or position.
    """
    calibrating = set(data.calibration_rows)
    others = [row for row in range(len(data.train)) if row not in calibrating][:rows]
    examples = data.train.select(others) if len(others) == rows else data.calibration
    values, signal = [], "logits"
    head = None if by_token else token_head(data.task, model, *data.batches(examples.select([0]), 1))
    for batch in data.batches(examples.select(range(min(rows, len(examples)))), BATCH):
        batch = on_device(model, batch)
        if head is not None:
            signal = "loss"
            losses, _ = label_losses(data.task, model, batch, head)
            values.append((losses.sum() / max(len(losses), 1)).reshape(1, 1))
            continue
        signals = data.task.signals(model, batch)
        signal = next(name for name in ("embeddings", "loss", "logits") if name in signals)
        if signal == "loss" and (by_token or signals["logits"].ndim == 2):
            signal = "logits"
        value, mask = signals[signal].float(), signals.get("mask")
        if signal == "logits" and mask is not None and mask.shape == value.shape[:-1]:
            value = value[mask.bool()]
        values.append(
            value.log_softmax(-1) if signal == "logits" else value.reshape(-1, value.shape[-1] if value.ndim else 1)
        )
    return signal, torch.cat(values)


def distance(changed: TaskOutputs, original: TaskOutputs, *, pairs: bool = False) -> float:
    """Return how far the outputs of a changed model are from those of the original, as a mean over rows.

    For logits it is KL(original || changed), for embeddings 1 - cosine, and for a loss its increase.

    Args:
        changed: outputs of the changed model, on the same rows.
        original: outputs of the original.
        pairs: compare embeddings by the cosines between rows, which also works where their widths differ: the distance
            is the root mean square change of these cosines.

    Returns:
        The distance; infinite where `changed` is not finite, so that no search prefers it.

    Raises:
        NotFiniteError: `original` holds NaN: the original itself fails on these rows.
    """
    if original[1].isnan().any():
        raise NotFiniteError(
            f"The original's {original[0]} on the calibration rows are not finite (NaN), so nothing can be compared "
            "with them. Load it in float32 or bfloat16, or look at the rows."
        )
    mean = _distance(changed, original, pairs)
    return math.inf if math.isnan(mean) else mean


def _distance(changed: TaskOutputs, original: TaskOutputs, pairs: bool) -> float:
    (signal, values), (_, targets) = changed, original
    if signal == "logits":
        return float(kl_divergence(targets, values).mean())
    if signal == "embeddings" and pairs:
        cosines, target_cosines = (
            functional.normalize(part) @ functional.normalize(part).T for part in (values, targets)
        )
        return float((cosines - target_cosines).square().mean().sqrt())
    if signal == "embeddings":
        return float((1 - functional.cosine_similarity(values, targets)).mean())
    return float((values - targets).mean())
