"""What a task must answer, and the bundle that stages work with."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.data import Examples
from hf_pe.dummies.inputs import processor_size
from hf_pe.plans import Sketch

Batch = dict[str, torch.Tensor]
ROW = "teacher_row"
"""Column, and entry of a batch: which training row this is, where a teacher's answers are looked up by it."""
POSSIBLE = "possible"
"""Entry of a batch: which tokens may be an answer's place."""
NOT_INPUTS = ("labels", ROW, POSSIBLE)
BEFORE_PATCHES = 5
"""Tokens that may stand before those of an image's patches: classes and registers."""


@dataclass(frozen=True)
class Judged:
    """What a task saw of each evaluation example: enough to score all of them or any sample of them.

    Attributes:
        columns: arrays with one entry (or row) per example.
        score: metrics from such columns.
        slices: name to which examples belong to it, [examples] of bool; what a report looks at for losses.
    """

    columns: dict[str, np.ndarray[Any, Any]]
    score: Callable[[dict[str, np.ndarray[Any, Any]]], dict[str, float]]
    slices: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of examples."""
        return len(next(iter(self.columns.values())))

    def scores(self, rows: np.ndarray[Any, Any] | None = None) -> dict[str, float]:
        """The metrics on all examples, or on `rows` (indices or a mask)."""
        return self.score(self.columns if rows is None else {k: v[rows] for k, v in self.columns.items()})


class Task(Protocol):
    """One kind of work: how examples become batches, what is measured, what a teacher gives."""

    @property
    def name(self) -> str:
        """As recipe files call it."""

    @property
    def auto_class(self) -> str:
        """The class of transformers that loads its models."""

    @property
    def pipeline_tag(self) -> str:
        """The Hub's word for it."""

    @property
    def metric(self) -> str:
        """The metric that matters most; a key of what `Judged.scores` gives."""

    @property
    def higher_is_better(self) -> bool:
        """Of that metric."""

    def prepare(self, examples: Examples, processor: Any, config: PretrainedConfig) -> "TaskData":
        """Tokenize; raises UsageError where the examples do not fit the task or the model."""

    def signals(self, model: PreTrainedModel, batch: Batch, *, hidden: bool = False) -> dict[str, Any]:
        """What a teacher gives and a student must match.

        Returns some of `logits` [batch, ..., classes], `embeddings` [batch, width], `loss` (task loss, scalar),
        `mask` (which positions count), and with `hidden` the tuple `hidden_states`.
        """

    def describe(self, data: "TaskData") -> str:
        """One sentence for the card: what the metric is."""

    def chance(self, model: PreTrainedModel, data: "TaskData") -> float | None:
        """Return the metric of guesses that do not look at the inputs; None where there is no such level."""

    def judge(self, model: PreTrainedModel, data: "TaskData") -> Judged:
        """What `model` makes of `data.eval`, example by example; its `scores()` are the task's metrics."""


@dataclass(frozen=True)
class TaskData:
    """Everything a stage may look at: tokenized rows, how to batch them, the processor, the teacher."""

    task: Task
    processor: Any
    train: datasets.Dataset
    eval: datasets.Dataset
    collate: Callable[[list[dict[str, Any]]], Batch]
    examples: Examples
    teacher: PreTrainedModel | None = None
    warnings: tuple[str, ...] = ()
    """Sentences on what the reader of a result should know of these rows and this model."""
    truncated: int = 0
    """Rows that had more tokens than `data.max_length`."""
    check_training_rows: Callable[[], None] = field(default=lambda: None, compare=False, repr=False)
    """Reads what only a training reads, the images or recordings of all rows; raises UsageError at a broken one."""
    memory: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """What one stage need not compute twice (the teacher's answers, statistics); `compress` empties it after each."""

    @property
    def calibration_rows(self) -> list[int]:
        """Which training rows statistics are taken from: a sample of all, in random order."""
        count, config = len(self.train), self.examples.config
        size = min(count, config.calibration)
        if self.examples.in_file_order:
            return random.Random(config.seed).sample(range(count), size)
        return list(range(size))

    def sketch(self, model: PreTrainedModel) -> Sketch:
        """Return what a dry run knows of `model`, which sees images of the processor's size."""
        return Sketch(config=model.config, model_class=type(model), pixels=processor_size(self.processor))

    @property
    def calibration(self) -> datasets.Dataset:
        """The training rows that statistics are taken from."""
        return self.train.select(self.calibration_rows)

    def batches(self, rows: datasets.Dataset, size: int = 32) -> Iterator[Batch]:
        """Yield `rows` in order, collated in batches."""
        yield from DataLoader(rows, batch_size=size, collate_fn=self.collate)


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


def as_read_by(model: PreTrainedModel, batch: Batch) -> Batch:
    """What a model reads of the batch, where it is; images and sounds in its precision."""
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


def thirds(values: np.ndarray[Any, Any], what: str) -> dict[str, np.ndarray[Any, Any]]:
    """Slices of examples by a number each has: the lowest, middle and highest third; none where all are equal."""
    low, high = np.quantile(values, [1 / 3, 2 / 3])
    parts = {f"lowest third of {what}": values <= low, f"highest third of {what}": values > high}
    parts[f"middle third of {what}"] = (values > low) & (values <= high)
    return {name: mask for name, mask in parts.items() if mask.any() and not mask.all()}
