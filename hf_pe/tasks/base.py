"""What a task must answer, and the bundle that stages work with."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import datasets
from torch.utils.data import DataLoader
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.data import Examples
from hf_pe.dummies.sizes import processor_size
from hf_pe.model_spec import ModelSpec
from hf_pe.tasks.batch import Batch
from hf_pe.tasks.evaluation import Judged


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

    @property
    def calibration_rows(self) -> list[int]:
        """Which training rows statistics are taken from: a sample of all, in random order."""
        count, config = len(self.train), self.examples.config
        size = min(count, config.calibration)
        if self.examples.in_file_order:
            return random.Random(config.seed).sample(range(count), size)
        return list(range(size))

    def spec(self, model: PreTrainedModel) -> ModelSpec:
        """Return what a dry run knows of `model`, which sees images of the processor's size."""
        return ModelSpec(config=model.config, model_class=type(model), pixels=processor_size(self.processor))

    @property
    def calibration(self) -> datasets.Dataset:
        """The training rows that statistics are taken from."""
        return self.train.select(self.calibration_rows)

    def batches(self, rows: datasets.Dataset, size: int = 32) -> Iterator[Batch]:
        """Yield `rows` in order, collated in batches."""
        yield from DataLoader(rows, batch_size=size, collate_fn=self.collate)
