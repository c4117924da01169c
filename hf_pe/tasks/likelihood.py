"""What tasks that guess tokens do alike: judge how likely the right ones were."""

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
"""Most bytes that whole logits in float32 may take where they cannot be made a few tokens at a time."""
Columns = dict[str, np.ndarray[Any, Any]]


def perplexity(columns: Columns) -> dict[str, float]:
    """exp of the mean negative log-likelihood of all tokens."""
    return {"perplexity": math.exp(min(columns["loss"].sum() / max(columns["tokens"].sum(), 1), 700.0))}


def perplexity_and_accuracy(columns: Columns) -> dict[str, float]:
    """The same, and the share of tokens that were found likeliest."""
    return perplexity(columns) | {"accuracy": float(columns["right"].sum() / max(columns["tokens"].sum(), 1))}


def unigram_perplexity(known: Iterable[Sequence[int]], evaluated: Iterable[Sequence[int]]) -> float:
    """Return the perplexity of `evaluated` tokens under the token frequencies of all rows together.

    A model that is no better has learned nothing of these texts but which tokens they have:

        exp(-mean of log(count(token) / tokens)),  count over `known` and `evaluated`

    Args:
        known: rows of labels or token ids; negative labels are left out.
        evaluated: rows of labels that are predicted.
    """
    tokens, others = (
        np.asarray([label for row in rows for label in row if label >= 0], dtype=int) for rows in (evaluated, known)
    )
    counts = np.bincount(np.concatenate([tokens, others]))
    return float(np.exp(-np.log(counts[tokens] / counts.sum()).mean())) if len(tokens) else math.inf


def scored_tokens(
    task: Task,
    model: PreTrainedModel,
    data: TaskData,
    size: int = 16,
    score: Callable[[Columns], dict[str, float]] = perplexity_and_accuracy,
) -> EvalResult:
    """Of each evaluation row negative log-likelihood, right guesses and number of the tokens with a label.

    Of a large vocabulary whole logits are not held: in chunks where the model's head is known, else a few rows at once.
    """
    rows: list[list[float]] = []
    with evaluating(model), torch.no_grad():
        head = token_head(task, model, *data.batches(data.eval.select([0]), 1))
        rows_at_once = size if head is not None else rows_within(data, model.config, size)
        for batch in data.batches(data.eval, rows_at_once):
            batch = on_device(model, batch)
            figures = _from_logits(task, model, batch) if head is None else _from_parts(task, model, batch, head)
            rows += figures.tolist()
    return EvalResult(dict(zip(("loss", "right", "tokens"), np.asarray(rows).T, strict=True)), score)


def rows_within(data: TaskData, config: PretrainedConfig, most: int) -> int:
    """Return how many rows, at most `most`, have whole logits of at most `LOGITS_BYTES` in float32."""
    row_bytes: int = 4 * data.examples.config.max_length * config.get_text_config().vocab_size
    return max(min(most, LOGITS_BYTES // row_bytes), 1)


def token_head(task: Task, model: PreTrainedModel, batch: Batch) -> Head | None:
    """Return the head by which logits of a large vocabulary can be made a few tokens at a time, where it is known."""
    large = task.predicts_tokens and model.config.get_text_config().vocab_size >= LARGE
    return Head.of(model, on_device(model, batch)) if large else None


def label_losses(task: Task, model: PreTrainedModel, batch: Batch, head: Head) -> tuple[torch.Tensor, torch.Tensor]:
    """Return of each label its negative log-likelihood and whether it is the likeliest token, without whole logits.

    Returns:
        Two tensors, float32, of the labels that count, in order.
        *Shape:* (labels,)
    """
    mask, labels = task.predicted(batch)
    losses, right = (torch.zeros(len(labels), device=labels.device) for _ in range(2))
    for place, logits in head.parts(head.last_state(model, batch)[mask]):
        losses[place] = torch.nn.functional.cross_entropy(logits.float(), labels[place], reduction="none")
        right[place] = (logits.argmax(-1) == labels[place]).float()
    return losses, right


def _from_parts(task: Task, model: PreTrainedModel, batch: Batch, head: Head) -> torch.Tensor:
    """Loss, right guesses and number of labels of each row, [rows, 3]."""
    losses, right = label_losses(task, model, batch, head)
    mask = task.predicted(batch)[0]
    figures = torch.stack([losses, right, torch.ones_like(losses)], 1)
    return figures.new_zeros(len(mask), 3).index_add_(0, mask.nonzero()[:, 0], figures)


def _from_logits(task: Task, model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """The same from whole logits."""
    found = task.signals(model, batch)
    logits, labels = found["logits"], batch["labels"][:, -found["logits"].shape[1] :]
    each = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")
    return torch.stack([each.sum(1), (logits.argmax(-1) == labels).sum(1), found["mask"].sum(1)], 1)
