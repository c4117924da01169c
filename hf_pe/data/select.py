"""Selects the rows that can be used, and divides them into training rows and evaluation rows."""

import hashlib
import random
from collections import Counter
from typing import Any

import datasets
from sklearn.model_selection import train_test_split

from hf_pe.data.config import DataConfig
from hf_pe.data_facts import RowCounts
from hf_pe.errors import UsageError

SHOWN = 80
"""Most characters of a value that a message shows."""


def usable(
    rows: datasets.Dataset, config: DataConfig, name: str, digests: set[bytes]
) -> tuple[datasets.Dataset, RowCounts]:
    """Return the rows without empty fields and without repetitions, and the counts of those left out.

    Args:
        rows: with the columns of `config`.
        config: names the columns.
        name: of the source, for errors.
        digests: of the rows of earlier sources; those of the kept rows are added.

    Raises:
        UsageError: all rows have an empty field, or a text column holds chat messages.
    """
    for column in (c for c in (config.image, config.audio) if c):
        if isinstance(rows.features[column], (datasets.Image, datasets.Audio)):  # compare files, not decoded content
            rows = rows.cast_column(column, type(rows.features[column])(decode=False))
    kept, empty = [], 0
    for number, row in enumerate(rows):
        _refuse_chat(row, config, name)
        if _is_empty(row, config):
            empty += 1
            continue
        key = digest(row, config.columns)
        if key not in digests:
            digests.add(key)
            kept.append(number)
    if not kept and empty == len(rows):
        raise UsageError(f"Data: {name} has no usable row: each has an empty {' or '.join(config.columns)}.")
    counts = RowCounts(read=len(rows), empty=empty, duplicate=len(rows) - empty - len(kept))
    return rows if len(kept) == len(rows) else rows.select(kept), counts


def digest(row: dict[str, Any], columns: list[str]) -> bytes:
    """Return a hash of the values in these columns of a row."""
    content = hashlib.blake2b(digest_size=16)
    for column in columns:
        value = row[column]
        content.update(value if isinstance(value, bytes) else repr(value).encode("utf-8", "surrogatepass"))
        content.update(b"\0")
    return content.digest()


def hold_out(rows: datasets.Dataset, config: DataConfig) -> tuple[list[int], list[int]]:
    """Return the indices of the rows to train on and of those to hold out, both in random order.

    Every class has the same fraction of the rows in both, if the label has enough rows of every class.

    Raises:
        UsageError: there is only one row.
    """
    count = len(rows)
    if count < 2:
        raise UsageError(f"{config.train} has {count} usable row: at least 2 are needed to hold one out.")
    held_out = max(round(count * config.eval_fraction), 1)
    classes = _classes(rows, config)
    if classes is not None and len(set(classes)) <= min(held_out, count - held_out):
        train, evaluation = train_test_split(
            range(count), test_size=held_out, stratify=classes, random_state=config.seed
        )
        return train, evaluation
    order = list(range(count))
    random.Random(config.seed).shuffle(order)
    return order[held_out:], order[:held_out]


def sample(rows: datasets.Dataset, limit: int | None, seed: int) -> datasets.Dataset:
    """Return at most `limit` rows, drawn at random from all rows, in their original order."""
    if limit is None or limit >= len(rows):
        return rows
    return rows.select(sorted(random.Random(seed).sample(range(len(rows)), limit)))


def overlap(train: datasets.Dataset, evaluation: datasets.Dataset, config: DataConfig) -> int:
    """Return how many evaluation rows have the inputs of a training row."""
    training_inputs = {digest(row, config.inputs) for row in train}
    return sum(digest(row, config.inputs) in training_inputs for row in evaluation)


def _classes(rows: datasets.Dataset, config: DataConfig) -> list[Any] | None:
    """Return the class of each row; None if the label is no class, or if a class has only one row."""
    if config.label is None:
        return None
    feature = rows.features[config.label]
    scalar = isinstance(feature, datasets.Value) and not feature.dtype.startswith(("float", "timestamp"))
    if not scalar and not isinstance(feature, datasets.ClassLabel):
        return None
    values = list(rows[config.label])
    return values if min(Counter(values).values()) > 1 else None


def _is_empty(row: dict[str, Any], config: DataConfig) -> bool:
    values = [row[column] for column in config.columns]
    return any(value is None or value != value for value in values) or any(not _filled(row[c]) for c in config.texts)


def _filled(text: Any) -> bool:
    """Return whether a text, or a list of words, contains a word."""
    return bool(str(text).strip() if not isinstance(text, list) else text)


def _refuse_chat(row: dict[str, Any], config: DataConfig, name: str) -> None:
    for column in config.texts:
        value = row[column]
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(each, dict) for each in value)):
            raise UsageError(
                f"Data: {name}: expected texts in column '{column}', got {_shortened(value)}. Chat data are not "
                "supported yet: write the finished text of each conversation into a column, for example what "
                "tokenizer.apply_chat_template(messages, tokenize=False) returns."
            )


def _shortened(value: Any) -> str:
    """Return the first characters of a value for a message, with dots if there are more."""
    text = str(value)
    return f"`{text}`" if len(text) <= SHOWN else f"`{text[: SHOWN - 4]} ...`"
