"""Token classification: a model chooses a label for each word, such as the names in a sentence."""

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
from hf_pe.tasks.batch import Batch, label_loss, model_inputs, on_device
from hf_pe.tasks.evaluation import EvalResult
from hf_pe.tasks.labels import label_column, label_numbers, require_classes
from hf_pe.tasks.texts import Truncation
from hf_pe.tasks.tokens import require_offsets, unknown_token_warnings


@dataclass(frozen=True)
class TokenClassification(Task):
    """Choose a label for each word of a text, such as the names in a sentence.

    Each row has a list of words (or a text that is split at spaces) and a label for each. A word's label is that of its
    first token; the others do not count. With labels such as B-PER and I-PER the metric is F1 over whole spans, as
    conlleval counts them; else it is the accuracy of words.

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
                the model's, or the tokenizer cannot say where its tokens stand.
        """
        options = examples.config
        label = label_column(options)
        require_offsets(processor)
        require_classes(config)

        tokenize = Truncation(processor, options.max_length)

        def tokens(rows: datasets.Dataset) -> datasets.Dataset:
            words = [_words(text) for text in rows[options.text]]
            tags = [_words(each) for each in rows[label]]
            for number, (some, others) in enumerate(zip(words, tags, strict=True)):
                if len(some) != len(others):
                    raise UsageError(f"Data: row {number} has {len(some)} words and {len(others)} labels: {some[:8]}.")
            texts = [" ".join(map(str, some)) for some in words]  # as the pipeline sends them, not word by word
            found = dict(tokenize(texts, return_offsets_mapping=True))
            labels = []
            for some, each, offsets in zip(words, tags, found.pop("offset_mapping"), strict=True):
                numbers, before = label_numbers(each, config, rows.features[label], options.label_names), None
                row = []
                for word in _word_of_each(offsets, some):
                    row.append(-100 if word is None or word == before else numbers[word])
                    before = word
                labels.append(row)
            return datasets.Dataset.from_dict(found | {"labels": labels})

        collate = DataCollatorForTokenClassification(processor)
        train, evaluation = tokens(examples.train), tokens(examples.eval)
        warnings = unknown_token_warnings(processor, train, evaluation)
        return TaskData(
            self, processor, train, evaluation, collate, examples, warnings=warnings, truncated=tokenize.rows
        )

    def signals(self, model: PreTrainedModel, batch: Batch, *, hidden: bool = False) -> dict[str, Any]:
        """Return logits [batch, tokens, labels], which tokens have a label, the task loss; on request hidden states."""
        out = model(**model_inputs(batch), output_hidden_states=hidden)
        labels = batch["labels"]
        found = {"logits": out.logits, "loss": label_loss(out.logits, labels), "mask": labels != -100}
        return found | ({"hidden_states": out.hidden_states} if hidden else {})

    def describe(self, data: TaskData) -> str:
        """Return what is counted."""
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
        """Return of each row the numbers of words, right words, given spans, predicted spans and right spans."""
        names = _label_names(model.config)
        counts: list[list[int]] = []
        with evaluating(model), torch.no_grad():
            for batch in data.batches(data.eval):
                found = self.signals(model, on_device(model, batch))
                for said, mask, gold in zip(
                    found["logits"].argmax(-1).cpu(), found["mask"].cpu(), batch["labels"], strict=True
                ):
                    counts.append(_counts(gold.cpu()[mask].tolist(), said[mask].tolist(), names))
        return EvalResult(_columns(counts), _f1)


def _label_names(config: PretrainedConfig) -> dict[int, str]:
    return {int(number): str(name) for number, name in (config.id2label or {}).items()}


def _counts(gold: Iterable[int], predicted: Iterable[int], names: dict[int, str]) -> list[int]:
    """Return the numbers of words, right words, given spans, predicted spans and right spans of one row."""
    one, other = ([names.get(int(n), str(int(n))) for n in each] for each in (gold, predicted))
    given, made = spans(one), spans(other)
    right = sum(a == b for a, b in zip(one, other, strict=True))
    return [len(one), right, len(given), len(made), len(given & made)]


def _columns(counts: list[list[int]]) -> dict[str, np.ndarray[Any, Any]]:
    return dict(zip(("words", "right", "given", "made", "both"), np.asarray(counts).T, strict=True))


def spans(labels: Sequence[str]) -> set[tuple[int, int, str]]:
    """(first word, word after the last, kind) of each span in B-, I- and O labels; other labels are spans of one word.

    As conlleval: I- after another kind, or after O, begins a span too.
    """
    found: set[tuple[int, int, str]] = set()
    start, kind = 0, ""
    for place, label in enumerate([*labels, "O"]):
        prefix, _, name = label.partition("-") if label[:2] in ("B-", "I-") else ("", "", label)
        goes_on = prefix == "I" and name == kind
        if kind and not goes_on:
            found.add((start, place, kind))
            kind = ""
        if label != "O" and not goes_on:
            start, kind = place, name
            if not prefix:
                found.add((place, place + 1, name))
                kind = ""
    return found


def _f1(columns: dict[str, np.ndarray[Any, Any]]) -> dict[str, float]:
    total = {name: int(values.sum()) for name, values in columns.items()}
    return {
        "f1": 2 * total["both"] / max(total["given"] + total["made"], 1),
        "accuracy": total["right"] / max(total["words"], 1),
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
