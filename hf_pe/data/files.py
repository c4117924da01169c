"""Reads the rows of one local file without converting values: strings stay strings, unused columns are not read."""

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from hf_pe.data.config import DataConfig
from hf_pe.errors import UsageError, nearest

Columns = dict[str, list[Any]]
SCALARS = (str, int, float)
UNREADABLE = (OSError, EOFError, LookupError, ValueError, RecursionError, zlib.error)
"""Errors that decoding, decompressing and parsing raise if a file has another format than its name says."""


def read_file(path: Path, config: DataConfig, columns: list[str]) -> datasets.Dataset:
    """Read `columns` of one file in the format that its ending names, or else as text with one row per line.

    Raises:
        UsageError: the file cannot be read in that format, or it lacks one of the columns.
    """
    ending = format_of(path)
    try:
        if ending == ".parquet":
            return _parquet(path, columns)
        content = READERS.get(ending, _text_lines)(path, config)
    except UsageError:
        raise
    except UNREADABLE as error:
        raise UsageError(
            f"Data: {path} cannot be read as {ending or 'text'} in {config.encoding}: {error}. "
            "Repair it, or set data.encoding if it has another encoding."
        ) from error
    require_columns(str(path), columns, list(content))
    return _dataset(path, {name: content[name] for name in columns}, config)


def format_of(path: Path) -> str:
    """Return the ending of the file's name that names its format, without `.gz`."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def require_columns(name: str, columns: list[str], present: list[str]) -> None:
    """Refuse rows that lack a column.

    Raises:
        UsageError: a column is missing; names it, and the columns that the rows have.
    """
    for column in columns:
        if column not in present:
            raise UsageError(
                f"Data: {name} has no column '{column}'; it has {', '.join(present) or 'none'}."
                f"{nearest(column, present)}"
            )


def formats() -> str:
    """Return the possible local sources as a phrase for error messages."""
    return f"a file or folder of {' '.join(READERS)} .parquet (also .gz) or text lines"


def _dataset(path: Path, content: Columns, config: DataConfig) -> datasets.Dataset:
    content = {name: _of_one_kind(values, name in config.texts) for name, values in content.items()}
    for name, values in content.items():
        try:
            pa.array(values)
        except (pa.ArrowException, OverflowError) as error:
            raise UsageError(
                f"Data: {path}: the values of column '{name}' are of different types ({str(error)[:120]}). "
                "Write them as one type."
            ) from error
        except UnicodeEncodeError as error:
            raise UsageError(
                f"Data: {path}: a text of column '{name}' has half a character (a lone surrogate), which no encoding "
                "can represent. Write the text again with the complete character."
            ) from error
    return datasets.Dataset.from_dict(content)


def _of_one_kind(values: list[Any], text: bool) -> list[Any]:
    """Return the values with numbers as strings if the column is a text column or has strings too."""
    present = [value for value in values if value is not None]
    if not all(isinstance(value, SCALARS) for value in present):
        return values
    if not (text or any(isinstance(value, str) for value in present)):
        return values
    return [None if value is None or value != value else str(value) for value in values]


@contextmanager
def _opened(path: Path, config: DataConfig, newline: str) -> Iterator[IO[str]]:
    """Open a file for reading, decompressed and without its byte order mark."""
    utf8 = config.encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    opener: Callable[..., IO[str]] = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig" if utf8 else config.encoding, newline=newline) as file:
        yield file


def _csv(path: Path, config: DataConfig) -> Columns:
    return _separated(path, config, {"strict": True})


def _tsv(path: Path, config: DataConfig) -> Columns:
    return _separated(path, config, {"delimiter": "\t", "quoting": csv.QUOTE_NONE})


def _separated(path: Path, config: DataConfig, dialect: dict[str, Any]) -> Columns:
    """Read a table with a header; blank lines are no rows."""
    longest = csv.field_size_limit(sys.maxsize)
    try:
        with _opened(path, config, "") as file:
            reader = csv.reader(file, **dialect)
            try:
                header = next(reader, [])
                rows = [_fitting(row, header, reader.line_num) for row in reader if row]
            except csv.Error as error:
                raise ValueError(f"line {reader.line_num}: {error} (a quote that is not written twice?)") from error
    finally:
        csv.field_size_limit(longest)
    twice = {name for name in header if name and header.count(name) > 1}
    if twice:
        raise ValueError(f"the header names {', '.join(sorted(twice))} twice")
    return {name: [row[column] for row in rows] for column, name in enumerate(header)}


def _fitting(row: list[str], header: list[str], line: int) -> list[Any]:
    """Return the row with as many fields as the header; missing fields are None."""
    if any(row[len(header) :]):
        raise ValueError(
            f"line {line} has {len(row)} fields and the header {len(header)} (a delimiter or quote that is not quoted?)"
        )
    return [*row[: len(header)], *[None] * (len(header) - len(row))]


def _json_lines(path: Path, config: DataConfig) -> Columns:
    rows = []
    with _opened(path, config, "\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    rows.append(_object(json.loads(line)))
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"line {number}: {error}") from error
    return _by_column(rows)


def _json(path: Path, config: DataConfig) -> Columns:
    """Read a list of objects, an object of columns, a single object, or JSON Lines."""
    with _opened(path, config, "\n") as file:
        text = file.read()
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _json_lines(path, config)
        raise
    if isinstance(content, list):
        return _by_column([_object(row) for row in content])
    columns = _object(content)
    for kind in (list, dict):  # a dict of dicts is what pandas writes: {column: {number of the row: value}}
        if columns and all(isinstance(values, kind) for values in columns.values()):
            lists = {name: list(v.values()) if kind is dict else v for name, v in columns.items()}
            if len({len(values) for values in lists.values()}) == 1:
                return lists
    if any(isinstance(value, (list, dict)) for value in columns.values()):
        raise ValueError(f"expected a list of objects, got one object with the keys {', '.join(columns)}")
    return _by_column([columns])


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected an object {{...}} for each row, got {str(value)[:60]!r}")
    return value


def _by_column(rows: list[dict[str, Any]]) -> Columns:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _text_lines(path: Path, config: DataConfig) -> Columns:
    r"""Read one row per line; only "\n" ends a line, and blank lines are no rows."""
    with _opened(path, config, "\n") as file:
        lines = [line.strip() for line in file]
    if any("\0" in line for line in lines):
        raise ValueError("it has NUL characters, so it is no text")
    lines = [line for line in lines if line]
    if not config.label_first:
        return {config.text: lines}
    pairs = [line.partition(" ") for line in lines]
    return {config.label or "label": [p[0] for p in pairs], config.text: [p[2] for p in pairs]}


def _parquet(path: Path, columns: list[str]) -> datasets.Dataset:
    """Read the columns with the features that `datasets` stored in the file, such as names of labels."""
    file = pq.ParquetFile(path)
    require_columns(str(path), columns, file.schema_arrow.names)
    return datasets.Dataset(file.read(columns=columns))


READERS: dict[str, Callable[[Path, DataConfig], Columns]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
}
