"""Where examples come from: local files, texts that Python itself carries, Hub data sets. Always rows with columns."""

import ast
import hashlib
import importlib.util
import pydoc_data.topics
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
from pydantic import Field

from hf_pe.errors import UsageError, nearest
from hf_pe.plans import Frozen

READERS = {
    ".csv": lambda path, encoding: pd.read_csv(path, encoding=encoding),
    ".tsv": lambda path, encoding: pd.read_csv(path, sep="\t", quoting=3, encoding=encoding),
    ".json": lambda path, encoding: pd.read_json(path, encoding=encoding),
    ".jsonl": lambda path, encoding: pd.read_json(path, lines=True, encoding=encoding),
    ".parquet": lambda path, encoding: pd.read_parquet(path),
}

MEDIA = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".wav")
"""Files that are examples themselves."""


class DataConfig(Frozen):
    """What to train, calibrate and evaluate on.

    A source is a local file (.csv .tsv .json .jsonl .parquet, anything else is read as text lines), a folder of such
    files, a folder with a folder of images or .wav files for each label, or with metadata.jsonl (or .csv) whose
    `file_name` names images or .wav files beside it (where `image` or `audio` is given),
    `builtin:pydoc` (the language reference that CPython carries), `builtin:docstrings:PACKAGE` (docstrings of an
    installed package, parsed and never imported), or the id of a Hub data set. Several sources are joined.
    """

    train: str | tuple[str, ...]
    eval: str | tuple[str, ...] | None = Field(None, description="default: a part of `train` that is held out")
    eval_fraction: float = Field(0.1, gt=0, lt=1, description="how much is held out where `eval` is not given")
    train_split: str = "train"
    eval_split: str = "validation"
    text: str = Field("text", description="column with the text")
    text_pair: str | None = Field(None, description="column with the second text of a pair")
    label: str | None = Field(
        None, description="column with the label, score, labels of words, answers, objects or target text"
    )
    image: str | None = Field(None, description="column with images: file names or bytes; in the place of text")
    audio: str | None = Field(None, description="column with recordings: .wav files, bytes or arrays; in that of text")
    label_first: bool = Field(False, description="text lines are 'LABEL text'")
    encoding: str = "utf-8"
    limit: int | None = Field(None, gt=0, description="most training rows")
    eval_limit: int | None = Field(None, gt=0, description="most evaluation rows")
    calibration: int = Field(256, gt=0, description="training rows that statistics are taken from")
    max_length: int = Field(128, gt=1, description="tokens per example")
    seed: int = 0


@dataclass(frozen=True)
class Examples:
    """Rows to train on and rows never trained on, with a fingerprint of both.

    Attributes:
        warnings: sentences on what the reader of a result should know of the rows.
    """

    train: datasets.Dataset
    eval: datasets.Dataset
    config: DataConfig
    fingerprint: str
    warnings: tuple[str, ...] = ()


def load_examples(data: DataConfig | str | Sequence[str] | datasets.Dataset) -> Examples:
    """Read everything `data` names and split it.

    Raises:
        UsageError: a source is missing, empty, lacks a named column or has no usable row.
    """
    if isinstance(data, datasets.Dataset):
        config = DataConfig(train="(given data set)")
        rows: datasets.Dataset = _usable(data, config, "the given data set")
    elif isinstance(data, (DataConfig, str)):
        config = data if isinstance(data, DataConfig) else DataConfig(train=data)
        rows = _read(config.train, config, config.train_split)
    else:
        config = DataConfig(train="(given texts)")
        rows = _usable(datasets.Dataset.from_dict({"text": list(data)}), config, "the given texts")
    if config.eval is None:
        order = list(range(len(rows)))
        random.Random(config.seed).shuffle(order)
        held_out = max(round(len(rows) * config.eval_fraction), 1)
        if len(rows) < 2:
            raise UsageError(f"{config.train} has {len(rows)} usable row: at least 2 are needed to hold one out.")
        train, evaluation = rows.select(order[held_out:]), rows.select(sorted(order[:held_out]))
    else:
        train, evaluation = rows, _read(config.eval, config, config.eval_split)
    train = train.select(range(min(len(train), config.limit or len(train))))
    evaluation = evaluation.select(range(min(len(evaluation), config.eval_limit or len(evaluation))))
    return Examples(train=train, eval=evaluation, config=config, fingerprint=_fingerprint(train, evaluation))


def sentences(text: str) -> Iterator[str]:
    """Cut English prose into sentences of 5 to 60 words; code, tables and markup lines are left out."""
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in paragraph.splitlines()]
        if any(re.match(r">>>|\.\.\.|\.\. |[-=*~^+|]{3,}", line) for line in lines):
            continue
        flat = re.sub(r":\w+:`~?([^`<]+)[^`]*`|``?([^`]+)``?", r"\1\2", " ".join(lines)).replace("**", "")
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", flat):
            words = sentence.split()
            letters = sum(c.isalpha() or c.isspace() for c in sentence)
            if 5 <= len(words) <= 60 and letters >= 0.85 * len(sentence) and sentence[0].isupper():
                yield " ".join(words)


def _read(sources: str | tuple[str, ...], config: DataConfig, split: str) -> datasets.Dataset:
    names = (sources,) if isinstance(sources, str) else sources
    if not names:
        raise UsageError("data.train: expected at least one source, got an empty list.")
    parts = [_usable(_source(name, config, split), config, name) for name in names]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def _source(name: str, config: DataConfig, split: str) -> datasets.Dataset:
    if name.startswith("builtin:"):
        return _builtin(name)
    path = Path(name).expanduser()
    if path.exists():
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        if not files or all(f.stat().st_size == 0 for f in files):
            raise UsageError(f"Data: {name} is empty. Expected rows in {_formats()}.")
        if path.is_dir() and (config.image or config.audio):
            told = [f for f in files if f.stem == "metadata" and f.suffix in READERS]
            if told:
                return datasets.concatenate_datasets([_with_files(f, config) for f in told])
            media = [f for f in files if f.suffix.lower() in MEDIA]
            if media:
                column = config.image or config.audio or ""
                labels = {config.label or "label": [f.parent.name for f in media]}
                return datasets.Dataset.from_dict({column: [str(f) for f in media], **labels})
        return datasets.Dataset.from_pandas(
            pd.concat([_frame(f, config) for f in files if f.stat().st_size]), preserve_index=False
        )
    if path.suffix or name.count("/") > 1 or name.startswith((".", "~", "/")):
        raise UsageError(f"Data: {name} does not exist. Expected {_formats()}, or the id of a Hub data set.")
    try:
        found: datasets.Dataset = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"Data: {name} is no local file or folder, and as a Hub data set: {error}") from error
    return found


def _with_files(metadata: Path, config: DataConfig) -> datasets.Dataset:
    """Rows of a metadata file, with the files that its `file_name` names beside it."""
    frame = _frame(metadata, config)
    if "file_name" not in frame:
        raise UsageError(f"Data: {metadata} has no column 'file_name'; it has {', '.join(map(str, frame))}.")
    frame[config.image or config.audio or ""] = [str(metadata.parent / name) for name in frame.pop("file_name")]
    return datasets.Dataset.from_pandas(frame, preserve_index=False)


def _frame(path: Path, config: DataConfig) -> pd.DataFrame:
    reader = READERS.get(path.suffix.lower())
    try:
        if reader is not None:
            return reader(path, config.encoding)
        lines = [line.strip() for line in path.read_text(config.encoding).splitlines() if line.strip()]
    except (ValueError, pd.errors.ParserError) as error:
        raise UsageError(
            f"Data: {path} cannot be read as {path.suffix or 'text'} in {config.encoding}: {error}"
        ) from error
    if not config.label_first:
        return pd.DataFrame({config.text: lines})
    pairs = [line.partition(" ") for line in lines]
    return pd.DataFrame({config.label or "label": [p[0] for p in pairs], config.text: [p[2] for p in pairs]})


def _usable(rows: datasets.Dataset, config: DataConfig, name: str) -> datasets.Dataset:
    """Keep the named columns and the rows that have text in them; identical rows once."""
    text = None if config.image or config.audio else config.text
    wanted = [c for c in (text, config.text_pair, config.image, config.audio, config.label) if c]
    for column in wanted:
        if column not in rows.column_names:
            raise UsageError(
                f"Data: {name} has no column '{column}'; it has {', '.join(rows.column_names) or 'none'}."
                f"{nearest(column, rows.column_names)}"
            )
    rows = rows.select_columns(wanted)
    for column in (c for c in (config.image, config.audio) if c):
        if isinstance(rows.features[column], (datasets.Image, datasets.Audio)):  # the file, not what is in it
            rows = rows.cast_column(column, type(rows.features[column])(decode=False))
    texts = [c for c in (text, config.text_pair) if c]
    kept, seen = [], set()
    for number, row in enumerate(rows):
        key = repr(row)
        empty = any(row[c] is None or row[c] != row[c] for c in wanted) or any(not _filled(row[c]) for c in texts)
        if not empty and key not in seen:
            kept.append(number)
            seen.add(key)
    if not kept:
        raise UsageError(f"Data: {name} has no usable row: each has an empty {' or '.join(wanted)}.")
    return rows if len(kept) == len(rows) else rows.select(kept)


def _filled(text: Any) -> bool:
    """Whether there is a word in a text, or in a list of words."""
    return bool(str(text).strip() if not isinstance(text, list) else text)


def _builtin(name: str) -> datasets.Dataset:
    _, kind, *rest = name.split(":")
    if kind == "pydoc" and not rest:
        texts: Iterator[str] = iter(pydoc_data.topics.topics.values())
    elif kind == "docstrings" and len(rest) == 1:
        texts = _docstrings(rest[0])
    else:
        raise UsageError(f"Data: {name} is unknown. Expected builtin:pydoc or builtin:docstrings:PACKAGE.")
    return datasets.Dataset.from_dict({"text": list(dict.fromkeys(s for text in texts for s in sentences(text)))})


def _docstrings(package: str) -> Iterator[str]:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"Data: builtin:docstrings:{package}: no package '{package}' is installed here.")
    for path in sorted(Path(next(iter(spec.submodule_search_locations))).rglob("*.py")):
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, ValueError):  # test files of packages may be broken on purpose
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                yield text


def _formats() -> str:
    return f"a file or folder of {' '.join(READERS)} or text lines"


def _fingerprint(*parts: datasets.Dataset) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for row in part:
            digest.update(repr(sorted(_plain(row).items())).encode())
    return digest.hexdigest()[:16]


def _plain(row: Any) -> dict[str, str]:
    return {key: str(value) for key, value in dict(row).items()}
