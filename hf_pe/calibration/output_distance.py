"""What a model answers, and how far that is from what another does."""

import math

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from hf_pe.calibration.hooks import BATCH
from hf_pe.errors import NotFiniteError
from hf_pe.tasks import TaskData, label_losses, on_device, token_head

ROWS = 64
"""Rows that the loss is taken on, behind those that calibrate where there are as many."""
LEAST = 2
"""Rows, however long they are."""

Answers = tuple[str, torch.Tensor]
"""What is compared (logits, embeddings, loss), and it, row by row."""


def rows_within(data: TaskData, tokens: int) -> int:
    """How many rows hold about `tokens` tokens, `LEAST` to `ROWS`; `ROWS` where rows are no tokens."""
    length = len(data.train[0].get("input_ids", ())) or 1
    return min(max(tokens // length, LEAST), ROWS)


@torch.no_grad()
def answers(model: PreTrainedModel, data: TaskData, rows: int = ROWS, *, by_token: bool = False) -> Answers:
    """What is compared, and it, row by row: log-probabilities, embeddings, or the loss where tokens are predicted.

    Args:
        model: whose answers.
        data: the rows; those behind the calibration's where there are as many.
        rows: how many.
        by_token: where tokens are predicted, the log-probabilities at each, [positions, vocabulary].
    """
    calibrated = set(data.calibration_rows)
    others = [row for row in range(len(data.train)) if row not in calibrated][:rows]
    given = data.train.select(others) if len(others) == rows else data.calibration
    found, signal = [], "logits"
    head = None if by_token else token_head(data.task, model, *data.batches(given.select([0]), 1))
    for batch in data.batches(given.select(range(min(rows, len(given)))), BATCH):
        batch = on_device(model, batch)
        if head is not None:
            signal = "loss"
            losses, _ = label_losses(data.task, model, batch, head)
            found.append((losses.sum() / max(len(losses), 1)).reshape(1, 1))
            continue
        told = data.task.signals(model, batch)
        signal = next(name for name in ("embeddings", "loss", "logits") if name in told)
        if signal == "loss" and (by_token or told["logits"].ndim == 2):
            signal = "logits"
        value, mask = told[signal].float(), told.get("mask")
        if signal == "logits" and mask is not None and mask.shape == value.shape[:-1]:
            value = value[mask.bool()]
        found.append(
            value.log_softmax(-1) if signal == "logits" else value.reshape(-1, value.shape[-1] if value.ndim else 1)
        )
    return signal, torch.cat(found)


def distance(found: Answers, wanted: Answers, *, pairs: bool = False) -> float:
    """KL(wanted || found), 1 - cosine, or how much more the loss is; mean over rows. With `pairs`, embeddings by how
    far the cosines between rows have moved. Infinite where `found` is not finite, so that no search prefers it.

    Raises:
        NotFiniteError: `wanted` holds NaN: the original itself fails on these rows.
    """
    if wanted[1].isnan().any():
        raise NotFiniteError(
            f"The original's {wanted[0]} on the calibration rows are no numbers (NaN), so nothing can be compared with "
            "them. Load it in float32 or bfloat16, or look at the rows."
        )
    moved = _distance(found, wanted, pairs)
    return math.inf if math.isnan(moved) else moved


def _distance(found: Answers, wanted: Answers, pairs: bool) -> float:
    (signal, here), (_, there) = found, wanted
    if signal == "logits":
        possible = there > -torch.inf  # what the original masks takes no part: 0 times infinity
        return float((there.exp() * (there - here)).masked_fill(~possible, 0).sum(-1).mean())
    if signal == "embeddings" and pairs:
        near, far = (functional.normalize(each) @ functional.normalize(each).T for each in (here, there))
        return float((near - far).square().mean().sqrt())
    if signal == "embeddings":
        return float((1 - functional.cosine_similarity(here, there)).mean())
    return float((here - there).mean())
