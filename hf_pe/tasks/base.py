"""What a task must answer, and the bundle that stages work with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import datasets
import torch
from torch.utils.data import DataLoader
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.data import Examples

Batch = dict[str, torch.Tensor]


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
        """The metric that matters most; a key of what `evaluate` gives."""

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

    def describe(self, examples: Examples) -> str:
        """One sentence for the card: what the metric is."""

    def evaluate(self, model: PreTrainedModel, data: "TaskData") -> dict[str, float]:
        """The task's metrics on `data.eval`."""


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

    @property
    def calibration(self) -> datasets.Dataset:
        """The training rows that statistics are taken from."""
        return self.train.select(range(min(len(self.train), self.examples.config.calibration)))

    def batches(self, rows: datasets.Dataset, size: int = 32) -> Iterator[Batch]:
        """Yield `rows` in order, collated in batches."""
        yield from DataLoader(rows, batch_size=size, collate_fn=self.collate)


def model_inputs(batch: Batch) -> Batch:
    """The batch without what only losses and metrics need."""
    return {key: value for key, value in batch.items() if key != "labels"}
