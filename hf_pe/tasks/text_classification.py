"""Text classification: one label per text or pair of texts."""

from dataclasses import dataclass
from typing import Any

import datasets
from transformers import DataCollatorWithPadding, PretrainedConfig

from hf_pe.data import Examples
from hf_pe.tasks.base import TaskData
from hf_pe.tasks.classification import Classification
from hf_pe.tasks.labels import label_column, label_numbers, require_classes
from hf_pe.tasks.texts import Truncation, texts_of
from hf_pe.tasks.tokens import unknown_token_warnings


@dataclass(frozen=True)
class TextClassification(Classification):
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
        require_classes(config)

        tokenize = Truncation(processor, options.max_length)

        def tokens(rows: datasets.Dataset) -> datasets.Dataset:
            found = dict(tokenize(*(texts_of(rows, name) for name in options.texts)))
            numbers = label_numbers(rows[label], config, rows.features[label], options.label_names)
            return datasets.Dataset.from_dict(found | {"labels": numbers})

        train, evaluation = tokens(examples.train), tokens(examples.eval)
        warnings = unknown_token_warnings(processor, train, evaluation)
        collate = DataCollatorWithPadding(processor)
        return TaskData(
            self, processor, train, evaluation, collate, examples, warnings=warnings, truncated=tokenize.rows
        )
