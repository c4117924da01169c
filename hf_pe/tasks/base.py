"""Defines what every task implements, and the prepared data that stages work with."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import datasets
import torch
from torch.utils.data import DataLoader
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.checkpoints.source import Source
from hf_pe.data import Examples
from hf_pe.dummies.sizes import processor_size
from hf_pe.errors import UsageError
from hf_pe.loading import ProcessorClass
from hf_pe.model_spec import ModelSpec
from hf_pe.tasks.batch import Batch
from hf_pe.tasks.evaluation import EvalResult


class Task(ABC):
    """Defines how examples become batches, what a model computes for a batch, and how a model is evaluated.

    A subclass has the class attributes below, its settings as fields of a frozen dataclass, and one line in
    `hf_pe.tasks.registry.TASKS`. Recipe files and their schema, the command line, the choice of a task by the model's
    class, distillation, reports and the documentation follow from these.
    """

    name: ClassVar[str]
    """The name of the task in recipe files."""
    auto_class: ClassVar[str]
    """The auto class of transformers that loads models of this task."""
    architectures: ClassVar[tuple[str, ...]] = ()
    """Endings of model class names, such as "ForMaskedLM". A checkpoint whose class ends so has this task."""
    processor_class: ClassVar[ProcessorClass] = "AutoTokenizer"
    """The auto class of transformers that loads the tokenizer, image processor or feature extractor."""
    pipeline_tag: ClassVar[str]
    """The Hub's name of the task."""
    metric: ClassVar[str]
    """The metric that matters most, a key of the dict that `EvalResult.scores` returns."""
    higher_is_better: ClassVar[bool] = True
    """Whether higher values of that metric are better."""
    hub_metrics: ClassVar[Mapping[str, str]] = {}
    """The Hub's names of metrics, by their names in `EvalResult.scores`, where the two differ."""
    outputs: ClassVar[str]
    """The outputs of a teacher that a student learns from, as a phrase for the documentation."""
    needs_label: ClassVar[bool] = False
    """Whether each example needs a label, so that the column "label" of a data set is read without being named."""
    reads_plain_text: ClassVar[bool] = False
    """Whether texts without labels are rows of the task, so that any text shows what a model has forgotten."""
    classifies: ClassVar[bool] = False
    """Whether a model chooses one of its labels, so that it needs two or more of them and has a head for them."""
    names_labels: ClassVar[bool] = False
    """Whether the model's config names its labels, so that a teacher needs the same ones in the same order."""
    predicts_tokens: ClassVar[bool] = False
    """Whether the task implements `predicted`, so that logits over a large vocabulary can be computed in chunks."""
    localizes: ClassVar[bool] = False
    """Whether labels say where in an image an object is: an augmented image would no longer fit its labels."""
    uncacheable: ClassVar[str | None] = None
    """The reason why a teacher's outputs cannot be cached, as a clause: "it masks other tokens each time"."""

    @classmethod
    def recognizes(cls, source: Source) -> bool:
        """Return whether files beside the weights show that a checkpoint has this task; asked if its class does not."""
        return False

    @classmethod  # noqa: B027  most tasks have nothing to refuse
    def require_inferred(cls, config: PretrainedConfig) -> None:
        """Refuse a model whose class name has an ending from `architectures` although the model does something else.

        Raises:
            UsageError: the model does something else; the message says what, and which commands work for it.
        """

    @classmethod
    def of_checkpoint(cls, source: Source) -> "Task":
        """Return the task with the settings that files beside the weights contain; by default there are none."""
        return cls()

    @abstractmethod
    def prepare(self, examples: Examples, processor: Any, config: PretrainedConfig) -> "TaskData":
        """Return the examples as tokenized or otherwise prepared rows, and the function that makes batches of them.

        Raises:
            UsageError: the examples do not fit the task or the model.
        """

    @abstractmethod
    def signals(self, model: PreTrainedModel, batch: Batch, *, hidden: bool = False) -> dict[str, Any]:
        """Run `model` on a batch and return the outputs that a student learns from.

        Args:
            model: of the teacher or the student.
            batch: from the `collate` function that `prepare` returned.
            hidden: return the hidden states as well.

        Returns:
            Some of `logits` [batch, ..., classes], `embeddings` [batch, width], `loss` (task loss, scalar), `mask`
            (which positions count), and with `hidden` the tuple `hidden_states`.
        """

    def predicted(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a mask [batch, tokens] of the positions that predict a token, and the ids of these tokens, in order.

        Tasks with `predicts_tokens` implement it. The model's head, applied to the hidden states at these positions,
        returns the logits of `signals`.
        """
        raise NotImplementedError(f"{type(self).__name__}.predicts_tokens is False")

    @abstractmethod
    def describe(self, data: "TaskData") -> str:
        """Return one sentence for the model card that explains the metrics."""

    def chance(self, model: PreTrainedModel, data: "TaskData") -> float | None:
        """Return the metric that guessing without the inputs reaches; None if no such value is defined."""
        return None

    @abstractmethod
    def evaluate(self, model: PreTrainedModel, data: "TaskData") -> EvalResult:
        """Evaluate `model` on `data.eval`, example by example; `scores()` of the result returns the metrics."""

    def hold_out(self, data: "TaskData", config: PretrainedConfig, fraction: float, most: int, seed: int) -> "HeldOut":
        """Draw training examples at random to evaluate a student on while it is trained on the others.

        Args:
            data: with the training rows.
            config: of the model.
            fraction: of the examples, at most.
            most: number of examples, at most.
            seed: of what is drawn.

        Raises:
            UsageError: the task cannot evaluate these examples.
        """
        examples = data.examples.train
        numbers = drawn(len(examples), fraction, most, seed)
        if not numbers:
            return HeldOut((), data)
        held_out = replace(data.examples, train=examples.select(numbers), eval=examples.select(numbers))
        evaluated = self.prepare(held_out, data.processor, config)
        rows = self.rows_of_examples(data, numbers)
        return HeldOut(tuple(rows), replace(evaluated, teacher=data.teacher), len(numbers))

    def rows_of_examples(self, data: "TaskData", numbers: Sequence[int]) -> Sequence[int]:
        """Return the indices of the training rows that were made from the training examples with these indices.

        Raises:
            UsageError: the task makes more or fewer rows than examples and does not override this.
        """
        if len(data.train) != len(data.examples.train):
            raise UsageError(f"task '{self.name}' does not say which rows belong to an example (rows_of_examples).")
        return numbers


@dataclass(frozen=True)
class TaskData:
    """Holds what a stage works with: prepared rows, how to make batches of them, the processor and the teacher."""

    task: Task
    processor: Any
    train: datasets.Dataset
    eval: datasets.Dataset
    collate: Callable[[list[dict[str, Any]]], Batch]
    examples: Examples
    teacher: PreTrainedModel | None = None
    warnings: tuple[str, ...] = ()
    """Sentences for the report on problems of these rows with this model."""
    truncated: int = 0
    """Rows that had more tokens than `data.max_length`."""
    check_training_rows: Callable[[], None] = field(default=lambda: None, compare=False, repr=False)
    """Reads the images or recordings that only training needs; raises UsageError if one is broken."""

    @property
    def calibration_rows(self) -> list[int]:
        """The indices of the training rows for calibration statistics: a random sample in random order."""
        count, config = len(self.train), self.examples.config
        size = min(count, config.calibration)
        if self.examples.in_file_order:
            return random.Random(config.seed).sample(range(count), size)
        return list(range(size))

    def spec(self, model: PreTrainedModel) -> ModelSpec:
        """Return what a dry run has to know about `model`; its images have the size that the processor makes."""
        return ModelSpec(config=model.config, model_class=type(model), pixels=processor_size(self.processor))

    @property
    def calibration(self) -> datasets.Dataset:
        """The training rows for calibration statistics."""
        return self.train.select(self.calibration_rows)

    def batches(self, rows: datasets.Dataset, size: int = 32) -> Iterator[Batch]:
        """Yield `rows` in order, collated in batches."""
        yield from DataLoader(rows, batch_size=size, collate_fn=self.collate)


@dataclass(frozen=True)
class HeldOut:
    """Holds training rows that are not trained on, so that a student can be evaluated on them during training.

    Attributes:
        rows: their indices among the training rows.
        data: has them as evaluation rows.
        examples: number of examples, or blocks of causal language models, that they were made from.
    """

    rows: tuple[int, ...]
    data: TaskData
    examples: int = 0


def drawn(count: int, fraction: float, most: int, seed: int) -> list[int]:
    """Return the sorted indices of at most `most` and at most `fraction` of `count` rows, drawn at random."""
    return sorted(random.Random(seed).sample(range(count), min(int(count * fraction), most)))
