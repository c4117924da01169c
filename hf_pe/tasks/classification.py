"""Defines the base class of tasks in which a model chooses one of its labels for each example."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.data import Examples
from hf_pe.errors import UsageError
from hf_pe.modes import evaluating
from hf_pe.tasks.base import Task, TaskData
from hf_pe.tasks.batch import ROW, Batch, label_loss, model_inputs, on_device
from hf_pe.tasks.evaluation import EvalResult
from hf_pe.tasks.labels import label_column, label_numbers, require_classes
from hf_pe.tasks.media import with_readable_media


class Classification(Task):
    """Choose a label for each example. A subclass says how examples become batches."""

    metric = "accuracy"
    hub_metrics: ClassVar[Mapping[str, str]] = {"f1_macro": "f1"}
    outputs = "logits of each example"
    needs_label = True
    classifies = True
    names_labels = True

    def signals(self, model: PreTrainedModel, batch: Batch, *, hidden: bool = False) -> dict[str, Any]:
        """Return logits [batch, labels], the task loss and, on request, hidden states."""
        out = model(**model_inputs(batch), output_hidden_states=hidden)
        loss = label_loss(out.logits, batch["labels"])
        return {"logits": out.logits, "loss": loss} | ({"hidden_states": out.hidden_states} if hidden else {})

    def describe(self, data: TaskData) -> str:
        """Return a sentence on the rows that the metrics are computed over."""
        return "`accuracy` and `f1_macro` are over the evaluation rows."

    def chance(self, model: PreTrainedModel, data: TaskData) -> float | None:
        """Return the accuracy of always choosing the most frequent label; None if the rows have only one label."""
        counts = np.unique(data.eval["labels"], return_counts=True)[1]
        return float(counts.max() / counts.sum()) if len(counts) > 1 else None

    def evaluate(self, model: PreTrainedModel, data: TaskData) -> EvalResult:
        """Compute the predicted class of each evaluation row, beside its label; there is a slice per label."""
        predicted: list[int] = []
        with evaluating(model), torch.no_grad():
            for batch in data.batches(data.eval):
                logits = self.signals(model, on_device(model, batch))["logits"]
                predicted += logits.argmax(-1).tolist()
        gold = np.asarray(data.eval["labels"])
        names: dict[Any, str] = model.config.id2label or {}
        slices = {f"label {names.get(int(label), label)}": gold == label for label in np.unique(gold)}
        return EvalResult({"predicted": np.asarray(predicted), "gold": gold}, _accuracy, slices)


def with_media(
    task: Task,
    examples: Examples,
    processor: Any,
    config: PretrainedConfig,
    column: str | None,
    collate: Callable[[list[dict[str, Any]]], Batch],
    read: Callable[[Any], Any],
) -> TaskData:
    """Return prepared rows with images or recordings and labels, and check that the files can be read.

    Args:
        task: that the rows are for.
        examples: rows of the data set.
        processor: image processor or feature extractor.
        config: of the model.
        column: with the files; an error names the setting where it is empty.
        collate: reads the files of a batch.
        read: reads one file; raises UsageError if it cannot.

    Raises:
        UsageError: no column with files or with labels is named, a label is none of the model's, or a file cannot be
            read.
    """
    label = label_column(examples.config)
    require_classes(config)
    if not column:
        what = task.name.partition("_")[0]
        raise UsageError(f"data.{what}: expected the name of the column with the files, got nothing.")

    def prepared(rows: datasets.Dataset) -> datasets.Dataset:
        numbers = label_numbers(rows[label], config, rows.features[label], examples.config.label_names)
        return rows.select_columns([column]).add_column("labels", numbers)

    train, evaluation = prepared(examples.train), prepared(examples.eval)
    return with_readable_media(TaskData(task, processor, train, evaluation, collate, examples), column, read)


def with_labels(batch: Batch, rows: list[dict[str, Any]]) -> Batch:
    """Return the batch with the labels of the rows, and their indices if a cached teacher needs them."""
    names = [name for name in ("labels", ROW) if name in rows[0]]
    return batch | {name: torch.tensor([row[name] for row in rows]) for name in names}


def _accuracy(columns: dict[str, np.ndarray[Any, Any]]) -> dict[str, float]:
    return {
        "accuracy": float(accuracy_score(columns["gold"], columns["predicted"])),
        "f1_macro": float(f1_score(columns["gold"], columns["predicted"], average="macro")),
    }
