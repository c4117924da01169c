"""Decide which files of a folder are data, and of which split."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hf_pe.data.config import DataConfig
from hf_pe.data.files import READERS, format_of
from hf_pe.errors import UsageError

MEDIA = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".wav")
"""Files that are examples themselves."""
TABLES = (*READERS, ".parquet", ".txt")
ABOUT = ("readme", "license", "licence", "copying", "notice", "citation", "changelog", "dataset_info", "dataset_infos")
"""Names, without endings, of files that speak of the data."""
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
"""Words in the name of a file or folder, by the split that they mean."""
FALLBACKS = {"train": ("train", None), "validation": ("validation", "test", None, "train"), "test": ("test", None)}
"""Which files of a folder a split takes: the first of these that it has; None: those that no split is named for."""


@dataclass(frozen=True)
class Chosen:
    """The files of a folder that one split takes.

    Attributes:
        files: in order of their names.
        kind: "tables", "metadata" (tables that name images or recordings beside them) or "media".
        unused: the other files, except those of other splits and what speaks of the data.
    """

    files: tuple[Path, ...]
    kind: str
    unused: tuple[Path, ...] = ()


def choose(folder: Path, config: DataConfig, split: str) -> Chosen:
    """Choose the data files of `folder` that belong to `split`.

    Raises:
        UsageError: it has none.
    """
    kind, by_split, others = _grouped(folder, config)
    if not by_split:
        expected = " ".join(MEDIA if config.media else TABLES)
        names = ", ".join(sorted({path.suffix or path.name for path in others})[:8])
        raise UsageError(
            f"Data: {folder} is empty. Expected files of {expected} in it{f'; it has {names}' if names else ''}. "
            "To read text files of other names, name each file."
        )
    wanted = split_named(split)
    order = FALLBACKS.get(wanted, (wanted, None))
    if not any(name in by_split for name in order):
        raise UsageError(
            f"Data: {folder} has no file for the split '{split}', only for {', '.join(map(str, by_split))}: nothing "
            "trains on these. Name the files themselves if they are what you mean."
        )
    taken = next(name for name in order if name in by_split)
    if taken is not None:
        others += by_split.get(None, [])
    elif wanted == "train":  # without files named for training, a file named for tests may be one that was overlooked
        others += by_split.get("test", [])
    return Chosen(tuple(by_split[taken]), kind, tuple(others))


def has_split(folder: Path, config: DataConfig, split: str) -> bool:
    """Return whether files of `folder` say by their names that they are of this split."""
    return split_named(split) in _grouped(folder, config)[1]


def _grouped(folder: Path, config: DataConfig) -> tuple[str, dict[str | None, list[Path]], list[Path]]:
    """Return the kind of the data files, these by split, and the other files."""
    every = [p for p in sorted(folder.rglob("*")) if p.is_file() and not _hidden(p.relative_to(folder))]
    every = [path for path in every if path.name.partition(".")[0].lower() not in ABOUT]
    kind, data = _of_kind(every, config)
    data = [path for path in data if path.stat().st_size]
    by_split: dict[str | None, list[Path]] = {}
    for path in data:
        by_split.setdefault(_split_of(path.relative_to(folder).parts, kind), []).append(path)
    used = set(data)
    return kind, by_split, [path for path in every if path not in used] if kind != "metadata" else []


def split_named(word: str) -> str:
    """Return the split that a word means, else the word."""
    return next((split for split, words in SPLITS.items() if word.lower() in words), word)


def _of_kind(files: list[Path], config: DataConfig) -> tuple[str, list[Path]]:
    if config.media:
        metadata = [path for path in files if path.stem == "metadata" and format_of(path) in TABLES]
        if metadata:
            return "metadata", metadata
        media = [path for path in files if path.suffix.lower() in MEDIA]
        if media:
            return "media", media
    return "tables", [path for path in files if format_of(path) in TABLES]


def _split_of(parts: tuple[str, ...], kind: str) -> str | None:
    """Return the split that folder and file names mean; the folder of a label means none."""
    counted: Iterable[str] = {"tables": parts, "metadata": parts[:-1], "media": parts[:-2]}[kind]
    for part in counted:
        words = re.split(r"[^a-z]+", part.lower())
        split = next((name for name, known in SPLITS.items() if any(word in known for word in words)), None)
        if split:
            return split
    return None


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)
