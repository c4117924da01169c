"""Defines token classification: a model chooses a label for each word of a text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from transformers import DataCollatorForTokenClassification, PretrainedConfig, PreTrainedModel

from hf_pe.data import Examples
from hf_pe.errors import UsageError
from hf_pe.modes import evaluating
from hf_pe.tasks.base import Task, TaskData
from hf_pe.tasks.batch import Batch, on_device, token_label_signals
from hf_pe.tasks.evaluation import EvalResult
from hf_pe.tasks.labels import label_column, label_numbers, require_classes
from hf_pe.tasks.texts import Truncation
from hf_pe.tasks.tokens import require_offsets, unknown_token_warnings


@dataclass(frozen=True)
class TokenClassification(Task):
    """Choose a label for each word of a text, such as the names in a sentence.

    Each row has a list of words (or a text that is split at spaces) and a label for each. A word's label belongs to its
    first token; its other tokens do not count. With labels such as B-PER and I-PER the metric is F1 over whole spans,
    as conlleval counts them; with other labels each word is a span.

    Example:
        >>> sorted(spans(["B-PER", "I-PER", "O", "B-LOC"]))
        [(0, 2, 'PER'), (3, 4, 'LOC')]
    """

    name = "token_classification"
    auto_class = "AutoModelForTokenClassification"
    architectures = ("ForTokenClassification",)
    pipeline_tag = "token-classification"
    metric = "f1"
    outputs = "logits of each word's first token"
    needs_label = True
    classifies = True
    names_labels = True

    def prepare(self, examples: Examples, processor: Any, config: PretrainedConfig) -> TaskData:
        """Tokenize the words and translate their labels into the model's.

        Raises:
            UsageError: no column with labels is named, a row has more words than labels or fewer, a label is none of
                the model's, or the tokenizer returns no offsets.
        """
        options = examples.config
        label = label_column(options)
        require_offsets(processor)
        require_classes(config)

        tokenize = Truncation(processor, options.max_length)

        def tokens(rows: datasets.Dataset) -> datasets.Dataset:
            words = [_words(text) for text in rows[options.text]]
            tags = [_words(of_row) for of_row in rows[label]]
            for number, (of_row, row_tags) in enumerate(zip(words, tags, strict=True)):
                if len(of_row) != len(row_tags):
                    raise UsageError(
                        f"Data: row {number} has {len(of_row)} words and {len(row_tags)} labels: {of_row[:8]}."
                    )
            texts = [" ".join(map(str, of_row)) for of_row in words]  # as the pipeline sends them, not word by word
            inputs = dict(tokenize(texts, return_offsets_mapping=True))
            labels = []
            for of_row, row_tags, offsets in zip(words, tags, inputs.pop("offset_mapping"), strict=True):
                numbers = label_numbers(row_tags, config, rows.features[label], options.label_names)
                token_labels, previous = [], None
                for word in _word_of_each(offsets, of_row):
                    token_labels.append(-100 if word is None or word == previous else numbers[word])
                    previous = word
                labels.append(token_labels)
            return datasets.Dataset.from_dict(inputs | {"labels": labels})

        collate = DataCollatorForTokenClassification(processor)
        train, evaluation = tokens(examples.train), tokens(examples.eval)
        warnings = unknown_token_warnings(processor, train, evaluation)
        return TaskData(
            self, processor, train, evaluation, collate, examples, warnings=warnings, truncated=tokenize.rows
        )

    def signals(self, model: PreTrainedModel, batch: Batch, *, hidden: bool = False) -> dict[str, Any]:
        """Return logits [batch, tokens, labels], which tokens have a label, the task loss; on request hidden states."""
        return token_label_signals(model, batch, hidden=hidden)

    def describe(self, data: TaskData) -> str:
        """Return a sentence on what `f1` and `accuracy` count."""
        return (
            "`f1` is over whole spans (conlleval) where labels begin with B- and I-, else over words; `accuracy` is of "
            "words."
        )

    def chance(self, model: PreTrainedModel, data: TaskData) -> float:
        """Return the better F1 of two guesses: the most frequent label for all words, and the labels at random."""
        rows = [[label for label in labels if label != -100] for labels in data.eval["labels"]]
        flat = np.concatenate([np.asarray(row, int) for row in rows])
        if not len(flat):
            return 0.0
        guesses = (np.full_like(flat, np.bincount(flat).argmax()), np.random.default_rng(0).permutation(flat))
        ends = np.cumsum([len(row) for row in rows])[:-1]
        names = _label_names(model.config)
        return max(
            _f1(_columns([_counts(*pair, names) for pair in zip(rows, np.split(guess, ends), strict=True)]))["f1"]
            for guess in guesses
        )

    def evaluate(self, model: PreTrainedModel, data: TaskData) -> EvalResult:
        """Count the words, right words, gold spans, predicted spans and right spans of each row."""
        names = _label_names(model.config)
        counts: list[list[int]] = []
        with evaluating(model), torch.no_grad():
            for batch in data.batches(data.eval):
                signals = self.signals(model, on_device(model, batch))
                predictions, masks = signals["logits"].argmax(-1).cpu(), signals["mask"].cpu()
                for predicted, mask, gold in zip(predictions, masks, batch["labels"], strict=True):
                    counts.append(_counts(gold.cpu()[mask].tolist(), predicted[mask].tolist(), names))
        return EvalResult(_columns(counts), _f1)


def _label_names(config: PretrainedConfig) -> dict[int, str]:
    return {int(number): str(name) for number, name in (config.id2label or {}).items()}


def _counts(gold: Iterable[int], predicted: Iterable[int], names: dict[int, str]) -> list[int]:
    """Return the numbers of words, right words, gold spans, predicted spans and right spans of one row."""
    gold_labels, predicted_labels = ([names.get(int(n), str(int(n))) for n in row] for row in (gold, predicted))
    gold_spans, predicted_spans = spans(gold_labels), spans(predicted_labels)
    right = sum(a == b for a, b in zip(gold_labels, predicted_labels, strict=True))
    return [len(gold_labels), right, len(gold_spans), len(predicted_spans), len(gold_spans & predicted_spans)]


def _columns(counts: list[list[int]]) -> dict[str, np.ndarray[Any, Any]]:
    names = ("words", "right_words", "gold_spans", "predicted_spans", "right_spans")
    return dict(zip(names, np.asarray(counts).T, strict=True))


def spans(labels: Sequence[str]) -> set[tuple[int, int, str]]:
    """Return the spans in B-, I- and O labels as (first word, word after the last, kind).

    As in conlleval, I- after another kind, or after O, begins a span too. Other labels are spans of one word.
    """
    result: set[tuple[int, int, str]] = set()
    start, kind = 0, ""
    for word, label in enumerate([*labels, "O"]):
        prefix, _, name = label.partition("-") if label[:2] in ("B-", "I-") else ("", "", label)
        continues = prefix == "I" and name == kind
        if kind and not continues:
            result.add((start, word, kind))
            kind = ""
        if label != "O" and not continues:
            start, kind = word, name
            if not prefix:
                result.add((word, word + 1, name))
                kind = ""
    return result


def _f1(columns: dict[str, np.ndarray[Any, Any]]) -> dict[str, float]:
    total = {name: int(values.sum()) for name, values in columns.items()}
    return {
        "f1": 2 * total["right_spans"] / max(total["gold_spans"] + total["predicted_spans"], 1),
        "accuracy": total["right_words"] / max(total["words"], 1),
    }


def _word_of_each(offsets: Iterable[tuple[int, int]], words: Sequence[Any]) -> list[int | None]:
    """Return the number of the word that each token ends in, None for special tokens.

    Args:
        offsets: first character, and the one behind the last, of each token in the words joined by spaces.
        words: of the row.
    """
    ends = np.cumsum([len(str(word)) + 1 for word in words])
    return [int(np.searchsorted(ends, end - 1, side="right")) if end > start else None for start, end in offsets]


def _words(text: Any) -> list[Any]:
    return text.split() if isinstance(text, str) else list(text)
