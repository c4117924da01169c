"""What tasks that guess tokens do alike: judge how likely the right ones were."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_pe.tasks.base import Judged, TaskData

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


def judged_tokens(
    task: Any,
    model: PreTrainedModel,
    data: TaskData,
    size: int = 16,
    score: Callable[[Columns], dict[str, float]] = perplexity_and_accuracy,
) -> Judged:
    """Of each evaluation row negative log-likelihood, right guesses and number of the tokens with a label."""
    rows: list[list[float]] = []
    with torch.no_grad():
        for batch in data.batches(data.eval, size):
            batch = {k: v.to(model.device) for k, v in batch.items()}
            found = task.signals(model.eval(), batch)
            logits, labels = found["logits"], batch["labels"][:, -found["logits"].shape[1] :]
            each = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")
            right = (logits.argmax(-1) == labels).sum(1)
            rows += torch.stack([each.sum(1), right, found["mask"].sum(1)], 1).tolist()
    return Judged(dict(zip(("loss", "right", "tokens"), np.asarray(rows).T, strict=True)), score)
