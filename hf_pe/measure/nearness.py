"""Measures how near the outputs of a result are to those of its original, prediction by prediction.

Both models read the same batches. For a task with logits each prediction is a distribution P of the original and a
distribution Q of the result over the same classes, and

    kl         sum over classes of P (ln P - ln Q), in nats, averaged over predictions
    agreement  fraction of predictions at which P and Q are largest for the same class

Only positions with a label are predictions: padding and labels of -100 do not count. Embeddings are compared by their
cosine.
"""

import random
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel

from hf_pe.measure.bootstrap import intervals
from hf_pe.modes import evaluating
from hf_pe.nearness_records import Estimate
from hf_pe.tasks import (
    TOKENS,
    Batch,
    EvalResult,
    Head,
    TaskData,
    as_read_by,
    kl_divergence,
    on_device,
    row_sums,
    token_head,
)
from hf_pe.tasks.likelihood import LOGITS_BYTES, Columns

MOST_ROWS = 1000
"""Most rows that are compared."""
MOST_TOKENS = 8192
"""Most tokens of these rows."""
BATCH = 16
"""Most rows per batch."""
Models = tuple[PreTrainedModel, PreTrainedModel]
"""The original and the result."""


class Comparison(NamedTuple):
    """Compares two models batch by batch.

    Attributes:
        columns: names of the sums that `row_values` returns.
        row_values: returns the sums of each row of a batch. *Shape:* (rows, columns)
        score: returns the means over predictions.
        rows: most rows per batch.
    """

    columns: tuple[str, ...]
    row_values: Callable[[Batch], torch.Tensor]
    score: Callable[[Columns], dict[str, float]]
    rows: int = BATCH


def nearness(
    original: PreTrainedModel, result: PreTrainedModel, data: TaskData, rows: datasets.Dataset
) -> EvalResult | None:
    """Compare the outputs of two models on prepared rows.

    Logits over a large vocabulary are computed a few tokens at a time, those of both models side by side.

    Args:
        original: the reference.
        result: a model with the same classes, or with embeddings of the same width.
        data: has the task and makes batches of rows.
        rows: of `data`.

    Returns:
        Scores `kl` and `agreement`, or `cosine`; None if the outputs cannot be compared, because the task has neither
        logits nor embeddings, or because their sizes differ.
    """
    with evaluating(original), evaluating(result), torch.no_grad():
        comparison = _comparison((original, result), data, next(data.batches(rows, 1)))
        if comparison is None:
            return None
        values = torch.cat([comparison.row_values(batch).cpu() for batch in data.batches(rows, comparison.rows)])
    columns = dict(zip(comparison.columns, values.double().numpy().T, strict=True))
    return EvalResult(columns, comparison.score)


def few_rows(rows: datasets.Dataset, seed: int) -> datasets.Dataset:
    """Return at most `MOST_ROWS` rows with at most `MOST_TOKENS` tokens, drawn at random, in their order."""
    order = random.Random(seed).sample(range(len(rows)), min(len(rows), MOST_ROWS))
    if "input_ids" in rows.column_names:
        tokens = np.cumsum([len(ids) for ids in rows.select(order)["input_ids"]])
        order = order[: max(int((tokens <= MOST_TOKENS).sum()), 1)]
    return rows.select(sorted(order))


def estimates(compared: EvalResult, *, resamples: int = 500, seed: int = 0) -> dict[str, Estimate]:
    """Return the scores of a comparison with their 95 % intervals over rows."""
    ranges = intervals(compared.scores, [np.arange(compared.count)], resamples, np.random.default_rng(seed))
    return {
        name: Estimate(value=value, low=ranges[name][0], high=ranges[name][1])
        for name, value in compared.scores().items()
    }


def predictions(compared: EvalResult) -> int:
    """Return the number of predictions that were compared: tokens, classes of rows, or embeddings."""
    counts = compared.columns.get("predictions")
    return compared.count if counts is None else int(counts.sum())


def _comparison(models: Models, data: TaskData, first: Batch) -> Comparison | None:
    """Return how two models are compared, by their outputs for a batch of one row; None if they cannot be."""
    heads = [head for model in models if (head := token_head(data.task, model, first)) is not None]
    sums = ("kl", "agreement", "predictions")
    if len(heads) == 2:
        return Comparison(sums, partial(_chunked_sums, models, heads, data), _means)
    signals = [_signals(model, data, first) for model in models]
    logits, embeddings = ([each[name] for each in signals if name in each] for name in ("logits", "embeddings"))
    if _same_shape(logits):
        rows = _rows_within(logits[0], data.examples.config.max_length)
        return Comparison(sums, partial(_whole_sums, models, data), _means, rows)
    if _same_shape(embeddings):
        return Comparison(("cosine",), partial(_cosines, models, data), _mean_cosine)
    return None


def _same_shape(outputs: list[torch.Tensor]) -> bool:
    return len(outputs) == 2 and outputs[0].shape == outputs[1].shape


def _rows_within(logits: torch.Tensor, max_length: int) -> int:
    """Return the number of rows, at most `BATCH`, whose logits of one model take at most half of `LOGITS_BYTES`."""
    row_bytes = 4 * logits.shape[-1] * (max_length if logits.ndim > 2 else 1)
    return max(min(BATCH, LOGITS_BYTES // (2 * row_bytes)), 1)


def _signals(model: PreTrainedModel, data: TaskData, batch: Batch) -> dict[str, torch.Tensor]:
    return data.task.signals(model, on_device(model, batch) | as_read_by(model, batch))


def _chunked_sums(models: Models, heads: list[Head], data: TaskData, batch: Batch) -> torch.Tensor:
    """Return the sums of each row, computed from the logits of a few tokens of both models at a time."""
    mask = data.task.predicted(batch)[0]
    states = [
        head.last_state(model, on_device(model, batch))[mask.to(model.device)]
        for model, head in zip(models, heads, strict=True)
    ]
    values = torch.zeros(int(mask.sum()), 3)
    for (tokens, original), (_, result) in zip(*(h.parts(s) for h, s in zip(heads, states, strict=True)), strict=True):
        values[tokens] = _compared(original, result)
    return row_sums(mask, values)


def _whole_sums(models: Models, data: TaskData, batch: Batch) -> torch.Tensor:
    """Return what `_chunked_sums` returns, computed from all logits of the batch."""
    signals = [_signals(model, data, batch) for model in models]
    logits = [each["logits"] for each in signals]
    mask = signals[0].get("mask", torch.ones(logits[0].shape[:-1], dtype=torch.bool)).to(logits[0].device)
    original, result = (each[mask.to(each.device)] for each in logits)
    starts = range(0, max(len(original), 1), TOKENS)
    values = torch.cat(
        [_compared(original[start : start + TOKENS], result[start : start + TOKENS]) for start in starts]
    )
    return row_sums(mask.cpu(), values)


def _compared(original: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """Return the KL divergence, the agreement and 1 for each prediction, on the CPU.

    Args:
        original: logits. *Shape:* (predictions, classes)
        result: logits. *Shape:* (predictions, classes)

    Returns:
        *Shape:* (predictions, 3)
    """
    log_p, log_q = original.float().log_softmax(-1), result.to(original.device).float().log_softmax(-1)
    kl = kl_divergence(log_p, log_q).clamp_min(0)
    agreement = (log_p.argmax(-1) == log_q.argmax(-1)).float()
    return torch.stack([kl, agreement, torch.ones_like(kl)], 1).cpu()


def _cosines(models: Models, data: TaskData, batch: Batch) -> torch.Tensor:
    """Return the cosine of the embeddings of each row. *Shape:* (rows, 1)."""
    original, result = (_signals(model, data, batch)["embeddings"].float().cpu() for model in models)
    return torch.cosine_similarity(original, result, dim=-1)[:, None]


def _means(columns: Columns) -> dict[str, float]:
    count = max(columns["predictions"].sum(), 1)
    return {name: float(columns[name].sum() / count) for name in ("kl", "agreement")}


def _mean_cosine(columns: Columns) -> dict[str, float]:
    return {"cosine": float(columns["cosine"].mean())}
