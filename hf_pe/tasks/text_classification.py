"""Text classification: one label per text or pair of texts."""

from dataclasses import dataclass
from typing import Any

import datasets
from transformers import DataCollatorWithPadding, PretrainedConfig, PreTrainedModel

from hf_pe.data import Examples
from hf_pe.tasks.base import Batch, Judged, TaskData
from hf_pe.tasks.classification import DESCRIPTION, class_signals, judged_classes, label_column, label_numbers


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
        label = label_column(options)

        def tokens(rows: datasets.Dataset) -> datasets.Dataset:
            texts = [[str(t) for t in rows[name]] for name in (options.text, options.text_pair) if name]
            found = dict(processor(*texts, truncation=True, max_length=options.max_length))
            return datasets.Dataset.from_dict(found | {"labels": label_numbers(rows[label], config)})

        collate = DataCollatorWithPadding(processor)
        return TaskData(self, processor, tokens(examples.train), tokens(examples.eval), collate, examples)

    def signals(self, model: PreTrainedModel, batch: Batch, *, hidden: bool = False) -> dict[str, Any]:
        """Logits [batch, labels], the task loss and, on request, hidden states."""
        return class_signals(model, batch, hidden=hidden)

    def describe(self, examples: Examples) -> str:
        """Says what is averaged."""
        return DESCRIPTION

    def judge(self, model: PreTrainedModel, data: TaskData) -> Judged:
        """Predicted and given label of each row; a slice per label."""
        return judged_classes(self, model, data)
