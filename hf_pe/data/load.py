"""Reads the sources that the settings name, and splits their rows into training rows and evaluation rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import datasets

from hf_pe.data.config import DataConfig, names_of
from hf_pe.data.files import require_columns
from hf_pe.data.fingerprint import fingerprint
from hf_pe.data.select import hold_out, overlap, sample, usable
from hf_pe.data.sources import has_validation, joined, read_source
from hf_pe.data_facts import RowCounts
from hf_pe.errors import UsageError, listed

Rows: TypeAlias = Sequence[str] | datasets.Dataset | datasets.DatasetDict
Data: TypeAlias = DataConfig | str | Rows | tuple[Rows, DataConfig]
"""The data argument of `compress`: settings, one source, or rows in memory, with or without settings for columns."""
LABELS = ("label", "labels")
"""Names of the columns that hold the label of a data set in memory, if no settings name another."""
MANY = 0.01
"""Fraction of empty or repeated rows above which there is a warning."""


@dataclass(frozen=True)
class Examples:
    """Holds the training rows and the evaluation rows, which are never trained on.

    Attributes:
        train: training rows.
        eval: evaluation rows.
        config: the settings that they were read with.
        fingerprint: hash of all rows.
        warnings: sentences for the report on problems of the rows.
        in_file_order: whether the training rows are in the order of their sources; they are else in random order.
        counts: how many rows were read, and how many were left out for which reason.
    """

    train: datasets.Dataset
    eval: datasets.Dataset
    config: DataConfig
    fingerprint: str
    warnings: tuple[str, ...] = ()
    in_file_order: bool = False
    counts: RowCounts = field(default_factory=RowCounts)


@dataclass(frozen=True)
class Part:
    """Holds the usable rows of some sources, and the files or splits that they were read from (`parts`)."""

    rows: datasets.Dataset
    counts: RowCounts
    parts: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()


def load_examples(data: Data, *, needs_label: bool = False) -> Examples:
    """Read the rows that `data` names, and split them into training rows and evaluation rows.

    Args:
        data: settings, the name of a source, texts, a data set, or (texts or data set, settings).
        needs_label: read the column "label" or "labels" of a data set that comes without settings.

    Raises:
        UsageError: a source is missing, empty, lacks a named column or has no usable row; or training and evaluation
            would read the same file.
    """
    if isinstance(data, str):
        data = DataConfig(train=data)
    if isinstance(data, DataConfig):
        config = _with_own_validation(data)
        train, evaluation = read_part(names_of(config.train), config, config.train_split), None
        if config.eval is not None:
            evaluation = read_part(names_of(config.eval), config, config.eval_split)
            _refuse_same(train, evaluation)
    else:
        rows, config = data if isinstance(data, tuple) and isinstance(data[-1], DataConfig) else (data, None)
        train, evaluation, config = _rows_in_memory(rows, config, needs_label)
    return _split(train, evaluation, config)


def load_for_evaluation(config: DataConfig) -> Examples:
    """Read the rows of `data.eval`, or else of `data.train`, for evaluation; the training rows are the same.

    Raises:
        UsageError: see `load_examples`.
    """
    part = read_part(names_of(config.eval or config.train), config, config.eval_split)
    rows = sample(part.rows, config.eval_limit, config.seed)
    counts = part.counts.model_copy(update={"over_limit": len(part.rows) - len(rows)})
    return Examples(rows, rows, config, fingerprint(config, rows), part.warnings, counts=counts)


def _with_own_validation(config: DataConfig) -> DataConfig:
    """Return settings that evaluate on the validation files in the training folders, if there are any."""
    if config.eval is not None:
        return config
    folders = tuple(name for name in names_of(config.train) if has_validation(name, config))
    return config.model_copy(update={"eval": folders}) if folders else config


def read_part(names: Sequence[str], config: DataConfig, split: str) -> Part:
    """Read the usable rows of some sources.

    Args:
        names: of the sources.
        config: names the columns.
        split: of the sources that have several.

    Raises:
        UsageError: see `load_examples`.
    """
    if not names:
        raise UsageError("data.train: expected at least one source, got an empty list.")
    digests: set[bytes] = set()
    parts, counts, read, warnings = [], RowCounts(), frozenset[str](), []
    for name in names:
        source = read_source(name, config, split)
        rows, source_counts = usable(source.rows, config, name, digests)
        parts.append(rows)
        counts, read = counts.plus(source_counts), read | source.parts
        if source.unused:
            warnings.append(f"Data: files of the folder that are not used: {listed(source.unused)}.")
    rows = joined([part for part in parts if len(part)] or parts)
    return Part(rows, counts, read, tuple(warnings))


def _rows_in_memory(rows: Any, config: DataConfig | None, needs_label: bool) -> tuple[Part, Part | None, DataConfig]:
    """Return the training part and the evaluation part, if any, of rows that are in memory, and their settings."""
    if isinstance(rows, datasets.DatasetDict):
        config = config or _settings_of(next(iter(rows.values())), needs_label)
        if config.train_split not in rows:
            raise UsageError(f"Data: the data set has no split '{config.train_split}'; it has {', '.join(rows)}.")
        evaluation = rows.get(config.eval_split)
        train = _part_in_memory(rows[config.train_split], config)
        return train, None if evaluation is None else _part_in_memory(evaluation, config), config
    if isinstance(rows, datasets.Dataset):
        config = config or _settings_of(rows, needs_label)
        return _part_in_memory(rows, config), None, config
    if not isinstance(rows, Iterable) or isinstance(rows, datasets.IterableDataset):
        raise UsageError(f"data: expected texts, a datasets.Dataset or a DataConfig, got {type(rows).__name__}.")
    texts = list(rows)
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        raise UsageError(f"data: expected a list of texts, got {str(wrong)[:80]!r} in it. Rows: datasets.Dataset.")
    config = config or DataConfig(train="(given texts)")
    return _part_in_memory(datasets.Dataset.from_dict({config.text: texts}), config), None, config


def _settings_of(rows: datasets.Dataset, needs_label: bool) -> DataConfig:
    label = next((name for name in LABELS if name in rows.column_names), None) if needs_label else None
    media = {} if "text" in rows.column_names else {n: n for n in ("image", "audio") if n in rows.column_names}
    return DataConfig(train="(given data set)", label=label, **media)


def _part_in_memory(rows: datasets.Dataset, config: DataConfig) -> Part:
    name = "the data set"
    require_columns(name, config.columns, rows.column_names)
    return Part(*usable(rows.select_columns(config.columns), config, name, set()))


def _refuse_same(train: Part, evaluation: Part) -> None:
    same = sorted(part.rpartition("/")[2] for part in train.parts & evaluation.parts)
    if same:
        raise UsageError(
            f"data.eval: {listed(same)} is in data.train too, and rows that a model was trained on do not show its "
            "quality. Leave data.eval out to hold out a part of the training rows."
        )


def _split(train: Part, evaluation: Part | None, config: DataConfig) -> Examples:
    """Return training and evaluation rows within the limits; without evaluation rows, training rows are held out."""
    read = train.counts if evaluation is None else train.counts.plus(evaluation.counts)
    if evaluation is None:
        order, held_out = hold_out(train.rows, config)
        rows = train.rows.select(order[: config.limit])
        eval_rows = train.rows.select(sorted(held_out[: config.eval_limit]))
    else:
        rows = sample(train.rows, config.limit, config.seed)
        eval_rows = sample(evaluation.rows, config.eval_limit, config.seed)
    over_limit = read.read - read.empty - read.duplicate - len(rows) - len(eval_rows)
    counts = read.model_copy(update={"over_limit": over_limit, "overlapping": overlap(rows, eval_rows, config)})
    warnings = (
        *train.warnings,
        *(evaluation.warnings if evaluation else ()),
        *_warnings_of_counts(counts, len(eval_rows)),
    )
    hashed = fingerprint(config, rows, eval_rows)
    return Examples(rows, eval_rows, config, hashed, warnings, evaluation is not None, counts)


def _warnings_of_counts(counts: RowCounts, evaluated: int) -> list[str]:
    """Return warnings about empty rows, repeated rows, and evaluation rows that are training rows too."""
    warnings = []
    if counts.empty > MANY * counts.read:
        warnings.append(f"Data: {counts.empty:,} of {counts.read:,} rows have an empty field and are left out.")
    if counts.duplicate > MANY * counts.read:
        warnings.append(f"Data: {counts.duplicate:,} of {counts.read:,} rows repeat another row and are left out.")
    if counts.overlapping:
        warnings.append(
            f"Data: {counts.overlapping:,} of {evaluated:,} evaluation rows are training rows too: the quality "
            "measured on them says little about other data."
        )
    return warnings
