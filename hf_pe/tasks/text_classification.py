"""Defines text classification: a model chooses a label for each text or pair of texts."""

from dataclasses import dataclass
from typing import Any

import datasets
from transformers import DataCollatorWithPadding, PretrainedConfig

from hf_pe.data import Examples
from hf_pe.errors import UsageError
from hf_pe.padding import lacks_padding
from hf_pe.tasks.base import TaskData
from hf_pe.tasks.classification import Classification
from hf_pe.tasks.labels import label_column, label_numbers, require_classes
from hf_pe.tasks.texts import Truncation, texts_of
from hf_pe.tasks.tokens import unknown_token_warnings


@dataclass(frozen=True)
class TextClassification(Classification):
    """Choose a label for a text or a pair of texts.

    Labels may be the model's label names or their numbers.

    Example:
        >>> TextClassification().hub_metrics
        {'f1_macro': 'f1'}
    """

    name = "text_classification"
    auto_class = "AutoModelForSequenceClassification"
    architectures = ("ForSequenceClassification",)
    pipeline_tag = "text-classification"

    def prepare(self, examples: Examples, processor: Any, config: PretrainedConfig) -> TaskData:
        """Tokenize the texts, and translate the labels into the model's.

        Raises:
            UsageError: no column with labels is named, a label is none of the model's, or nothing can pad rows.
        """
        options = examples.config
        label = label_column(options)
        require_classes(config)

        tokenize = Truncation(processor, options.max_length)

        def tokens(rows: datasets.Dataset) -> datasets.Dataset:
            inputs = dict(tokenize(*(texts_of(rows, name) for name in options.texts)))
            numbers = label_numbers(rows[label], config, rows.features[label], options.label_names)
            return datasets.Dataset.from_dict(inputs | {"labels": numbers})

        train, evaluation = tokens(examples.train), tokens(examples.eval)
        warnings = (*_padding_warnings(processor, config), *unknown_token_warnings(processor, train, evaluation))
        collate = DataCollatorWithPadding(processor)
        return TaskData(
            self, processor, train, evaluation, collate, examples, warnings=warnings, truncated=tokenize.rows
        )


def _padding_warnings(tokenizer: Any, config: PretrainedConfig) -> tuple[str, ...]:
    """Return a warning if the model's config names no padding token, so that the tokenizer's is used.

    Raises:
        UsageError: the tokenizer has no padding token either, and no end of text.
    """
    if tokenizer.pad_token is None:
        raise UsageError(
            "The tokenizer has neither a padding token nor an end of text, so that rows of different lengths make no "
            "batch. Set tokenizer.pad_token to a token that occurs in no text."
        )
    if not lacks_padding(config):
        return ()
    return (
        "The model's config names no padding token, without which a decoder classifies only one row at a time: "
        f"`{tokenizer.pad_token}` (id {tokenizer.pad_token_id}) of the tokenizer is used, and the result's config "
        "names it.",
    )
