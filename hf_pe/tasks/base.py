"""What a task is, and the rows, processor and teacher that stages work with."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import datasets
import torch
from torch.utils.data import DataLoader
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.checkpoints.source import Source
from hf_pe.data import Examples
from hf_pe.dummies.sizes import processor_size
from hf_pe.loading import ProcessorClass
from hf_pe.model_spec import ModelSpec
from hf_pe.tasks.batch import Batch
from hf_pe.tasks.evaluation import EvalResult


class Task(ABC):
    """One kind of work: how examples become batches, what a model computes for a batch, and how it is evaluated.

    A subclass has the class attributes below, its settings as fields of a frozen dataclass, and one line in
    `hf_pe.tasks.registry.TASKS`. Recipe files and their schema, the command line, the choice of a task by the model's
    class, distillation, reports and the documentation follow from these.
    """

    name: ClassVar[str]
    """Its name in recipe files."""
    auto_class: ClassVar[str]
    """The class of transformers that loads its models."""
    architectures: ClassVar[tuple[str, ...]] = ()
    """How the names of its models' classes end, such as "ForMaskedLM": a checkpoint that names one has this task."""
    processor_class: ClassVar[ProcessorClass] = "AutoTokenizer"
    """The class of transformers that loads what makes its models' inputs."""
    pipeline_tag: ClassVar[str]
    """The Hub's name of the task."""
    metric: ClassVar[str]
    """The metric that matters most; a key of what `EvalResult.scores` gives."""
    higher_is_better: ClassVar[bool] = True
    """Whether higher values of that metric are better."""
    hub_metrics: ClassVar[Mapping[str, str]] = {}
    """The Hub's names of metrics, by the names in `EvalResult.scores`, where the two differ."""
    outputs: ClassVar[str]
    """What a teacher gives and a student learns from, as a phrase for the documentation."""
    needs_label: ClassVar[bool] = False
    """Whether each example needs a label, so that the column "label" of a data set is read without being named."""
    classifies: ClassVar[bool] = False
    """Whether a model chooses one of its labels, so that it needs two or more of them and has a head for them."""
    names_labels: ClassVar[bool] = False
    """Whether the model's config names its labels, so that a teacher needs the same ones in the same order."""
    predicts_tokens: ClassVar[bool] = False
    """Whether `predicted` says which tokens are predicted, so that a large vocabulary's logits are made in chunks."""
    has_places: ClassVar[bool] = False
    """Whether labels say where in an image something is, so that images cannot be augmented without moving them."""
    uncacheable: ClassVar[str | None] = None
    """The reason why a teacher's outputs cannot be cached, as a clause: "it hides other tokens each time"."""

    @classmethod
    def recognizes(cls, source: Source) -> bool:
        """Return whether files beside the weights say that a model whose class belongs to no task has this one."""
        return False

    @classmethod  # noqa: B027  most tasks have nothing to refuse
    def require_inferred(cls, config: PretrainedConfig) -> None:
        """Refuse a model whose class is named as this task's are, and that does something else.

        Raises:
            UsageError: says what the model does, and what can be done with it.
        """

    @classmethod
    def of_checkpoint(cls, source: Source) -> "Task":
        """Return the task with the settings that files beside a checkpoint's weights state; default: none do."""
        return cls()

    @abstractmethod
    def prepare(self, examples: Examples, processor: Any, config: PretrainedConfig) -> "TaskData":
        """Tokenize the examples.

        Raises:
            UsageError: the examples do not fit the task or the model.
        """

    @abstractmethod
    def signals(self, model: PreTrainedModel, batch: Batch, *, hidden: bool = False) -> dict[str, Any]:
        """Return what a teacher gives and a student must match.

        Returns:
            Some of `logits` [batch, ..., classes], `embeddings` [batch, width], `loss` (task loss, scalar), `mask`
            (which positions count), and with `hidden` the tuple `hidden_states`.
        """

    def predicted(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which positions [batch, tokens] predict a token, and the id of that token for each of them, in order.

        Where `predicts_tokens`, the logits at these positions are what the model's head gives for their hidden states.
        """
        raise NotImplementedError(f"{type(self).__name__}.predicts_tokens is False")

    @abstractmethod
    def describe(self, data: "TaskData") -> str:
        """Return one sentence for the card: what the metric is."""

    def chance(self, model: PreTrainedModel, data: "TaskData") -> float | None:
        """Return the metric of guesses that do not look at the inputs; None where there is no such level."""
        return None

    @abstractmethod
    def evaluate(self, model: PreTrainedModel, data: "TaskData") -> EvalResult:
        """Evaluate `model` on `data.eval`, example by example; `scores()` of the result are the task's metrics."""


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
