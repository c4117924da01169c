"""Read what the settings name and split it into rows to train on and rows to evaluate on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import datasets

from hf_pe.data.config import DataConfig, names_of
from hf_pe.data.files import require_columns
from hf_pe.data.fingerprint import fingerprint
from hf_pe.data.select import hold_out, overlap, sample, usable
from hf_pe.data.sources import has_validation, joined, read_source
from hf_pe.errors import UsageError, listed
from hf_pe.report import RowCounts

Rows: TypeAlias = Sequence[str] | datasets.Dataset | datasets.DatasetDict
Data: TypeAlias = DataConfig | str | Rows | tuple[Rows, DataConfig]
"""What `compress` takes: settings, one source, or rows that are in memory, with settings where columns have names."""
LABELS = ("label", "labels")
"""Columns of a given data set that are the label where no settings say another."""
MANY = 0.01
"""From this fraction of the rows on, what was left out is said before work."""


@dataclass(frozen=True)
class Examples:
    """Rows to train on and rows never trained on, with a fingerprint of both.

    Attributes:
        warnings: sentences on what the reader of a result should know of the rows.
        in_file_order: whether training rows stand as in their sources; else they are in random order.
        counts: rows that were read, and what became of those that are not used.
    """

    train: datasets.Dataset
    eval: datasets.Dataset
    config: DataConfig
    fingerprint: str
    warnings: tuple[str, ...] = ()
    in_file_order: bool = False
    counts: RowCounts = field(default_factory=RowCounts)


@dataclass(frozen=True)
class _Part:
    """Usable rows of some sources."""

    rows: datasets.Dataset
    counts: RowCounts
    parts: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()


def load_examples(data: Data, *, needs_label: bool = False) -> Examples:
    """Read everything `data` names and split it.

    Args:
        data: settings, the name of a source, texts, a data set, or (texts or data set, settings).
        needs_label: whether the column "label" or "labels" of a data set given without settings is its label.

    Raises:
        UsageError: a source is missing, empty, lacks a named column or has no usable row; or training and evaluation
            would read the same file.
    """
    if isinstance(data, str):
        data = DataConfig(train=data)
    if isinstance(data, DataConfig):
        config = _with_own_validation(data)
        train, evaluation = _read(names_of(config.train), config, config.train_split), None
        if config.eval is not None:
            evaluation = _read(names_of(config.eval), config, config.eval_split)
            _refuse_same(train, evaluation)
    else:
        rows, config = data if isinstance(data, tuple) and isinstance(data[-1], DataConfig) else (data, None)
        train, evaluation, config = _given(rows, config, needs_label)
    return _split(train, evaluation, config)


def load_for_evaluation(config: DataConfig) -> Examples:
    """Read the rows of `data.eval`, or else of `data.train`, to evaluate on alone: training rows are the same.

    Raises:
        UsageError: as `load_examples`.
    """
    part = _read(names_of(config.eval or config.train), config, config.eval_split)
    rows = sample(part.rows, config.eval_limit, config.seed)
    counts = part.counts.model_copy(update={"over_limit": len(part.rows) - len(rows)})
    return Examples(rows, rows, config, fingerprint(config, rows), part.warnings, counts=counts)


def _with_own_validation(config: DataConfig) -> DataConfig:
    """Evaluate on the validation files that lie in the folders to train on."""
    if config.eval is not None:
        return config
    folders = tuple(name for name in names_of(config.train) if has_validation(name, config))
    return config.model_copy(update={"eval": folders}) if folders else config


def _read(names: Sequence[str], config: DataConfig, split: str) -> _Part:
    if not names:
        raise UsageError("data.train: expected at least one source, got an empty list.")
    known: set[bytes] = set()
    parts, counts, read, warnings = [], RowCounts(), frozenset[str](), []
    for name in names:
        source = read_source(name, config, split)
        rows, found = usable(source.rows, config, name, known)
        parts.append(rows)
        counts, read = counts.plus(found), read | source.parts
        if source.unused:
            warnings.append(f"Data: files of the folder that are not used: {listed(source.unused)}.")
    rows = joined([part for part in parts if len(part)] or parts)
    return _Part(rows, counts, read, tuple(warnings))


def _given(rows: Any, config: DataConfig | None, needs_label: bool) -> tuple[_Part, _Part | None, DataConfig]:
    """Return the parts of rows that are in memory, and their settings."""
    if isinstance(rows, datasets.DatasetDict):
        config = config or _settings_of(next(iter(rows.values())), needs_label)
        if config.train_split not in rows:
            raise UsageError(f"Data: the given data set has no split '{config.train_split}'; it has {', '.join(rows)}.")
        held = rows.get(config.eval_split)
        return _in_memory(rows[config.train_split], config), None if held is None else _in_memory(held, config), config
    if isinstance(rows, datasets.Dataset):
        config = config or _settings_of(rows, needs_label)
        return _in_memory(rows, config), None, config
    if not isinstance(rows, Iterable) or isinstance(rows, datasets.IterableDataset):
        raise UsageError(f"data: expected texts, a datasets.Dataset or a DataConfig, got {type(rows).__name__}.")
    texts = list(rows)
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        raise UsageError(f"data: expected a list of texts, got {str(wrong)[:80]!r} in it. Rows: datasets.Dataset.")
    config = config or DataConfig(train="(given texts)")
    return _in_memory(datasets.Dataset.from_dict({config.text: texts}), config), None, config


def _settings_of(rows: datasets.Dataset, needs_label: bool) -> DataConfig:
    label = next((name for name in LABELS if name in rows.column_names), None) if needs_label else None
    media = {} if "text" in rows.column_names else {n: n for n in ("image", "audio") if n in rows.column_names}
    return DataConfig(train="(given data set)", label=label, **media)


def _in_memory(rows: datasets.Dataset, config: DataConfig) -> _Part:
    name = "the given data set"
    require_columns(name, config.columns, rows.column_names)
    return _Part(*usable(rows.select_columns(config.columns), config, name, set()))


def _refuse_same(train: _Part, evaluation: _Part) -> None:
    same = sorted(part.rpartition("/")[2] for part in train.parts & evaluation.parts)
    if same:
        raise UsageError(
            f"data.eval: {listed(same)} is in data.train too: what a model was trained on says nothing about it. "
            "Leave data.eval out to hold a part of the training rows out."
        )


def _split(train: _Part, evaluation: _Part | None, config: DataConfig) -> Examples:
    """Hold a part out where no rows are given for evaluation, sample down to the limits, and count."""
    read = train.counts if evaluation is None else train.counts.plus(evaluation.counts)
    if evaluation is None:
        order, held_out = hold_out(train.rows, config)
        rows = train.rows.select(order[: config.limit])
        held = train.rows.select(sorted(held_out[: config.eval_limit]))
    else:
        rows = sample(train.rows, config.limit, config.seed)
        held = sample(evaluation.rows, config.eval_limit, config.seed)
    left_out = read.read - read.empty - read.duplicate - len(rows) - len(held)
    counts = read.model_copy(update={"over_limit": left_out, "overlapping": overlap(rows, held, config)})
    warnings = (*train.warnings, *(evaluation.warnings if evaluation else ()), *_said(counts, len(held)))
    return Examples(rows, held, config, fingerprint(config, rows, held), warnings, evaluation is not None, counts)


def _said(counts: RowCounts, evaluated: int) -> list[str]:
    """Return sentences on rows that are not what a reader expects."""
    found = []
    if counts.empty > MANY * counts.read:
        found.append(f"Data: {counts.empty:,} of {counts.read:,} rows have an empty field and are left out.")
    if counts.duplicate > MANY * counts.read:
        found.append(f"Data: {counts.duplicate:,} of {counts.read:,} rows repeat another one and are left out.")
    if counts.overlapping:
        found.append(
            f"Data: {counts.overlapping:,} of {evaluated:,} evaluation rows are training rows too: the quality "
            "measured on them says little about other data."
        )
    return found
