"""Text classification: one label per text or pair of texts."""

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score
from transformers import DataCollatorWithPadding, PretrainedConfig, PreTrainedModel

from hf_pe.data import Examples
from hf_pe.errors import UsageError
from hf_pe.tasks.base import Batch, Judged, TaskData, model_inputs


@dataclass(frozen=True)
class TextClassification:
    """Labels may be the model's label names or their numbers."""

    name: str = "text_classification"
    auto_class: str = "AutoModelForSequenceClassification"
    pipeline_tag: str = "text-classification"
    metric: str = "accuracy"
    higher_is_better: bool = True

    def prepare(self, examples: Examples, processor: Any, config: PretrainedConfig) -> TaskData:
        """Tokenize and translate the labels into the model's."""
        options = examples.config
        if not options.label:
            raise UsageError("data.label: expected the name of the column with the labels, got nothing.")

        def tokens(rows: datasets.Dataset) -> datasets.Dataset:
            texts = [[str(t) for t in rows[name]] for name in (options.text, options.text_pair) if name]
            found = dict(processor(*texts, truncation=True, max_length=options.max_length))
            return datasets.Dataset.from_dict(found | {"labels": _numbers(rows[options.label], config)})

        collate = DataCollatorWithPadding(processor)
        return TaskData(self, processor, tokens(examples.train), tokens(examples.eval), collate, examples)

    def signals(self, model: PreTrainedModel, batch: Batch, *, hidden: bool = False) -> dict[str, Any]:
        """Logits [batch, labels], the task loss and, on request, hidden states."""
        out = model(**model_inputs(batch), output_hidden_states=hidden)
        loss = torch.nn.functional.cross_entropy(out.logits.float(), batch["labels"])
        found = {"logits": out.logits, "loss": loss, "mask": batch["attention_mask"]}
        return found | ({"hidden_states": out.hidden_states} if hidden else {})

    def describe(self, examples: Examples) -> str:
        """Says what is averaged."""
        return "`accuracy` and `f1_macro` are over the evaluation rows."

    def judge(self, model: PreTrainedModel, data: TaskData) -> Judged:
        """Predicted and given label of each row; a slice per label."""
        predicted: list[int] = []
        with torch.no_grad():
            for batch in data.batches(data.eval):
                logits = self.signals(model.eval(), {k: v.to(model.device) for k, v in batch.items()})["logits"]
                predicted += logits.argmax(-1).tolist()
        gold = np.asarray(data.eval["labels"])
        names: dict[Any, str] = model.config.id2label or {}
        slices = {f"label {names.get(int(label), label)}": gold == label for label in np.unique(gold)}
        return Judged({"predicted": np.asarray(predicted), "gold": gold}, _accuracy, slices)


def _accuracy(columns: dict[str, np.ndarray[Any, Any]]) -> dict[str, float]:
    return {
        "accuracy": float(accuracy_score(columns["gold"], columns["predicted"])),
        "f1_macro": float(f1_score(columns["gold"], columns["predicted"], average="macro")),
    }


def _numbers(labels: Any, config: PretrainedConfig) -> list[int]:
    names = {str(name): number for name, number in (config.label2id or {}).items()}
    numbers = {str(number): number for number in range(config.num_labels or 0)}
    found: list[int] = []
    for label in labels:
        text = str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)
        number = names.get(text, numbers.get(text))
        if number is None:
            raise UsageError(
                f"Data: label '{text}' is none of the model's: {', '.join(names)} (or 0..{len(numbers) - 1})."
            )
        found.append(int(number))
    return found
