"""Evaluates models that predict tokens, by the likelihood of the right tokens."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.modes import evaluating
from hf_pe.tasks.base import Task, TaskData
from hf_pe.tasks.batch import Batch, on_device
from hf_pe.tasks.evaluation import EvalResult
from hf_pe.tasks.head import LARGE, Head

LOGITS_BYTES = 2**28
"""Most bytes of float32 logits per batch, where they cannot be computed a few tokens at a time."""
Columns = dict[str, np.ndarray[Any, Any]]


def perplexity(columns: Columns) -> dict[str, float]:
    """Return exp of the mean negative log-likelihood of all tokens."""
    return {"perplexity": math.exp(min(columns["loss"].sum() / max(columns["tokens"].sum(), 1), 700.0))}


def perplexity_and_accuracy(columns: Columns) -> dict[str, float]:
    """Return the perplexity, and the fraction of the tokens to which the model gave the highest probability."""
    return perplexity(columns) | {"accuracy": float(columns["right"].sum() / max(columns["tokens"].sum(), 1))}


def unigram_perplexity(training: Iterable[Sequence[int]], evaluated: Iterable[Sequence[int]]) -> float:
    """Return the perplexity of `evaluated` tokens under the token frequencies of all rows together.

    A model that is no better has learned nothing of these texts but the frequency of their tokens:

        exp(-mean of log(count(token) / tokens)),  count over `training` and `evaluated`

    Args:
        training: rows of labels or token ids; negative labels are left out.
        evaluated: rows of labels that are predicted.
    """
    tokens, training_tokens = (
        np.asarray([label for row in rows for label in row if label >= 0], dtype=int) for rows in (evaluated, training)
    )
    counts = np.bincount(np.concatenate([tokens, training_tokens]))
    return float(np.exp(-np.log(counts[tokens] / counts.sum()).mean())) if len(tokens) else math.inf


def scored_tokens(
    task: Task,
    model: PreTrainedModel,
    data: TaskData,
    size: int = 16,
    score: Callable[[Columns], dict[str, float]] = perplexity_and_accuracy,
) -> EvalResult:
    """Compute the summed negative log-likelihood, right predictions and number of the labelled tokens of each row.

    Logits over a large vocabulary are computed a few tokens at a time if `Head.of` supports the model, and else a few
    rows at a time.

    Args:
        task: one with `predicts_tokens`.
        model: is put in evaluation mode meanwhile.
        data: `data.eval` is evaluated.
        size: most rows per batch.
        score: returns the metrics from the columns `loss`, `right` and `tokens`.
    """
    rows: list[list[float]] = []
    with evaluating(model), torch.no_grad():
        head = token_head(task, model, *data.batches(data.eval.select([0]), 1))
        rows_at_once = size if head is not None else rows_within(data, model.config, size)
        for batch in data.batches(data.eval, rows_at_once):
            batch = on_device(model, batch)
            sums = _sums_of_logits(task, model, batch) if head is None else _sums_in_chunks(task, model, batch, head)
            rows += sums.tolist()
    return EvalResult(dict(zip(("loss", "right", "tokens"), np.asarray(rows).T, strict=True)), score)


def rows_within(data: TaskData, config: PretrainedConfig, most: int) -> int:
    """Return the number of rows, at most `most`, whose logits take at most `LOGITS_BYTES` in float32."""
    row_bytes: int = 4 * data.examples.config.max_length * config.get_text_config().vocab_size
    return max(min(most, LOGITS_BYTES // row_bytes), 1)


def token_head(task: Task, model: PreTrainedModel, batch: Batch) -> Head | None:
    """Return the head that computes logits a few tokens at a time; None for a small vocabulary or an unknown head."""
    large = task.predicts_tokens and model.config.get_text_config().vocab_size >= LARGE
    return Head.of(model, on_device(model, batch)) if large else None


def label_losses(task: Task, model: PreTrainedModel, batch: Batch, head: Head) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the negative log-likelihood of each label, and whether it is the most likely token, in chunks of tokens.

    Returns:
        Two float32 tensors for the labels other than -100, in order.
        *Shape:* (labels,)
    """
    mask, labels = task.predicted(batch)
    losses, right = (torch.zeros(len(labels), device=labels.device) for _ in range(2))
    for tokens, logits in head.parts(head.last_state(model, batch)[mask]):
        losses[tokens] = torch.nn.functional.cross_entropy(logits.float(), labels[tokens], reduction="none")
        right[tokens] = (logits.argmax(-1) == labels[tokens]).float()
    return losses, right


def _sums_in_chunks(task: Task, model: PreTrainedModel, batch: Batch, head: Head) -> torch.Tensor:
    """Return the loss, the right predictions and the number of labels of each row, [rows, 3]."""
    losses, right = label_losses(task, model, batch, head)
    return row_sums(task.predicted(batch)[0], torch.stack([losses, right, torch.ones_like(losses)], 1))


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return KL(P || Q) in nats for each pair of distributions; classes that P rules out count 0.

    Args:
        log_p: log-probabilities, -inf for classes that cannot occur. *Shape:* (..., classes)
        log_q: log-probabilities. *Shape:* (..., classes)

    Returns:
        *Shape:* (...)

    Example:
        >>> log_p, log_q = torch.tensor([0.8, 0.2, 0.0]).log(), torch.tensor([0.5, 0.5, 0.0]).log()
        >>> round(float(kl_divergence(log_p, log_q)), 3)  # 0.8 ln(0.8 / 0.5) + 0.2 ln(0.2 / 0.5)
        0.193
    """
    possible = log_p > -torch.inf  # the others would add 0 times infinity
    return (log_p.exp() * (log_p - log_q)).masked_fill(~possible, 0).sum(-1)


def row_sums(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the sums over the positions of each row.

    Args:
        mask: the positions that have values. *Shape:* (rows, ...), bool
        values: of these positions, in order. *Shape:* (positions, n)

    Returns:
        *Shape:* (rows, n)

    Example:
        >>> row_sums(torch.tensor([[True, False], [True, True]]), torch.tensor([[1.0], [2.0], [4.0]]))
        tensor([[1.],
                [6.]])
    """
    return values.new_zeros(len(mask), values.shape[1]).index_add_(0, mask.nonzero()[:, 0], values)


def _sums_of_logits(task: Task, model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Return what `_sums_in_chunks` returns, computed from all logits at once."""
    signals = task.signals(model, batch)
    logits, labels = signals["logits"], batch["labels"][:, -signals["logits"].shape[1] :]
    losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")
    return torch.stack([losses.sum(1), (logits.argmax(-1) == labels).sum(1), signals["mask"].sum(1)], 1)
