"""Which rows can be used, and which of them are evaluated, trained on, or left out."""

import hashlib
import random
from collections import Counter
from typing import Any

import datasets
from sklearn.model_selection import train_test_split

from hf_pe.data.config import DataConfig
from hf_pe.errors import UsageError
from hf_pe.report import RowCounts

SHOWN = 80
"""Characters of a value that a message shows."""


def usable(
    rows: datasets.Dataset, config: DataConfig, name: str, known: set[bytes]
) -> tuple[datasets.Dataset, RowCounts]:
    """Keep the rows in which nothing is empty, identical rows once.

    Args:
        rows: with the columns of `config`.
        config: says which columns these are.
        name: of the source, for errors.
        known: digests of the rows before these; those of the kept rows are added.

    Raises:
        UsageError: no row is left, or a text is none.
    """
    for column in (c for c in (config.image, config.audio) if c):
        if isinstance(rows.features[column], (datasets.Image, datasets.Audio)):  # the file, not what is in it
            rows = rows.cast_column(column, type(rows.features[column])(decode=False))
    kept, empty = [], 0
    for number, row in enumerate(rows):
        _refuse_chat(row, config, name)
        if _is_empty(row, config):
            empty += 1
            continue
        key = digest(row, config.columns)
        if key not in known:
            known.add(key)
            kept.append(number)
    if not kept and empty == len(rows):
        raise UsageError(f"Data: {name} has no usable row: each has an empty {' or '.join(config.columns)}.")
    counts = RowCounts(read=len(rows), empty=empty, duplicate=len(rows) - empty - len(kept))
    return rows if len(kept) == len(rows) else rows.select(kept), counts


def digest(row: dict[str, Any], columns: list[str]) -> bytes:
    """Return what tells rows apart by these columns."""
    found = hashlib.blake2b(digest_size=16)
    for column in columns:
        value = row[column]
        found.update(value if isinstance(value, bytes) else repr(value).encode("utf-8", "surrogatepass"))
        found.update(b"\0")
    return found.digest()


def hold_out(rows: datasets.Dataset, config: DataConfig) -> tuple[list[int], list[int]]:
    """Return which rows to train on and which to hold out, both in random order; classes have equal shares in both.

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
    """Return at most `limit` rows from all over `rows`, in the order they have."""
    if limit is None or limit >= len(rows):
        return rows
    return rows.select(sorted(random.Random(seed).sample(range(len(rows)), limit)))


def overlap(train: datasets.Dataset, evaluation: datasets.Dataset, config: DataConfig) -> int:
    """Return how many evaluation rows have the inputs of a training row."""
    known = {digest(row, config.inputs) for row in train}
    return sum(digest(row, config.inputs) in known for row in evaluation)


def _classes(rows: datasets.Dataset, config: DataConfig) -> list[Any] | None:
    """Return the class of each row; None where the label is none, or a class has one row only."""
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
    """Whether there is a word in a text, or in a list of words."""
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
    """Return how a message shows a value: its first characters, with dots where the rest is left out."""
    text = str(value)
    return f"`{text}`" if len(text) <= SHOWN else f"`{text[: SHOWN - 4]} ...`"
