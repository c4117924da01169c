"""Reads the rows of a source: builtin texts, a file, a folder, or a data set on disk or on the Hub."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from hf_pe.data.builtin import builtin_rows
from hf_pe.data.config import DataConfig
from hf_pe.data.files import format_of, formats, read_file, require_columns
from hf_pe.data.folders import MEDIA, TABLES, Chosen, choose, has_split
from hf_pe.errors import UsageError
from hf_pe.files.own_files import is_own


@dataclass(frozen=True)
class SourceRows:
    """Holds the rows of one source.

    Attributes:
        rows: with the columns that are used.
        parts: the files or splits of data sets that were read. The same file or split always has the same name.
        unused: files of a folder that were not read.
    """

    rows: datasets.Dataset
    parts: frozenset[str]
    unused: tuple[str, ...] = ()


def read_source(name: str, config: DataConfig, split: str) -> SourceRows:
    """Read the rows of one source.

    Raises:
        UsageError: the source is missing, empty, cannot be read or lacks a column.
    """
    path = Path(name).expanduser()
    if name.startswith("builtin:"):
        return SourceRows(_used(builtin_rows(name), config, name), frozenset([name]))
    if saved_splits(path) is not None:
        return SourceRows(_used(_from_disk(path, split), config, name), frozenset([f"{path.resolve()}:{split}"]))
    if path.is_dir():
        chosen = choose(path, config, split)
        unused = tuple(str(file.relative_to(path)) for file in chosen.unused)
        return SourceRows(_of_folder(path, chosen, config), frozenset(str(f.resolve()) for f in chosen.files), unused)
    if path.exists():
        if path.stat().st_size == 0:
            raise UsageError(f"Data: {name} is empty. Expected rows in {formats()}.")
        return SourceRows(read_file(path, config, config.columns), frozenset([str(path.resolve())]))
    if _looks_like_file(path) or name.count("/") > 1 or name.startswith((".", "~", "/")):
        raise UsageError(f"Data: {name} does not exist. Expected {formats()}, or the id of a Hub data set.")
    key = f"{name}:{config.config_name}:{config.revision}:{split}"
    return SourceRows(_used(_from_hub(name, config, split), config, name), frozenset([key]))


def _looks_like_file(path: Path) -> bool:
    """Return whether a name ends like that of a data file; ids of data sets may have dots too (OpenHermes-2.5)."""
    return format_of(path) in (*TABLES, *MEDIA) or path.suffix.lower() == ".gz"


def has_validation(name: str, config: DataConfig) -> bool:
    """Return whether a source is a local folder with rows of its own for evaluation."""
    path = Path(name).expanduser()
    splits = saved_splits(path)
    if splits is not None:
        return config.eval_split in splits
    return path.is_dir() and has_split(path, config, config.eval_split)


def saved_splits(path: Path) -> tuple[str, ...] | None:
    """Return the splits of a folder that `save_to_disk` wrote, () for a data set without splits; None if it did not."""
    if (path / "dataset_dict.json").is_file():
        return tuple(split.name for split in sorted(path.iterdir()) if split.is_dir())
    return () if (path / "state.json").is_file() and (path / "dataset_info.json").is_file() else None


def joined(parts: list[datasets.Dataset]) -> datasets.Dataset:
    """Join the rows of several files; a column that has different types in them becomes strings.

    Raises:
        UsageError: a column has different types that cannot become strings, such as lists.
    """
    for column in parts[0].column_names:
        features = [part.features[column] for part in parts]
        if any(feature != features[0] for feature in features):
            parts = [_with_strings(part, column) for part in parts]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def _with_strings(rows: datasets.Dataset, column: str) -> datasets.Dataset:
    feature = rows.features[column]
    if not isinstance(feature, (datasets.Value, datasets.ClassLabel)):
        raise UsageError(
            f"Data: column '{column}' has different types in the sources (in one {feature}). Write it as one type."
        )
    name = feature.int2str if isinstance(feature, datasets.ClassLabel) else str
    values = [None if value is None else name(value) for value in rows[column]]
    return rows.remove_columns(column).add_column(column, values)


def _used(rows: datasets.Dataset, config: DataConfig, name: str) -> datasets.Dataset:
    require_columns(name, config.columns, rows.column_names)
    return rows.select_columns(config.columns)


def _of_folder(folder: Path, chosen: Chosen, config: DataConfig) -> datasets.Dataset:
    if chosen.kind == "media":
        labels = {config.label or "label": [path.parent.name for path in chosen.files]}
        content = {config.media or "": [str(path) for path in chosen.files], **labels}
        rows = datasets.Dataset.from_dict(content)
        return _used(rows, config, str(chosen.files[0].parent.parent))
    if chosen.kind == "metadata":
        return joined([_with_files(folder, path, config) for path in chosen.files])
    return joined([read_file(path, config, config.columns) for path in chosen.files])


def _with_files(folder: Path, metadata: Path, config: DataConfig) -> datasets.Dataset:
    """Read the rows of a metadata file in `folder`, with the paths of the files that its column `file_name` names.

    Raises:
        UsageError: a name leads out of the folder.
    """
    columns = [name for name in config.columns if name != config.media]
    rows = read_file(metadata, config, ["file_name", *columns])
    names = rows["file_name"]
    files = [None if name is None else str(metadata.parent / str(name)) for name in names]
    for number, (name, file) in enumerate(zip(names, files, strict=True), 1):
        if file is not None and (Path(str(name)).is_absolute() or not is_own(folder, Path(file))):
            raise UsageError(
                f"Data: row {number} of {metadata} names '{name}', which is outside of {folder} (or a link that leads "
                "out of it). Expected a path inside that folder, relative to the metadata file."
            )
    return rows.remove_columns("file_name").add_column(config.media or "", files)


def _from_disk(path: Path, split: str) -> datasets.Dataset:
    try:
        content: Any = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"Data: {path} cannot be read as a saved data set: {error}") from error
    if isinstance(content, datasets.Dataset):
        return content
    if split not in content:
        raise UsageError(
            f"Data: {path} has no split '{split}'; it has {', '.join(content)}. "
            "Set data.train_split or data.eval_split."
        )
    return content[split]


def _from_hub(name: str, config: DataConfig, split: str) -> datasets.Dataset:
    try:
        rows: datasets.Dataset = datasets.load_dataset(name, config.config_name, split=split, revision=config.revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        several = re.search(r"among the available configs: \[(.*?)\]", str(error))
        if several:
            raise UsageError(
                f"Data: {name} has several configurations; set data.config_name to one of "
                f"{several[1].replace(chr(39), '')}."
            ) from error
        raise UsageError(f"Data: {name} is no local file or folder, and as a Hub data set: {error}") from error
    return rows
