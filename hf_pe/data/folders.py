"""Decides which files of a folder are data, and to which split they belong."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hf_pe.data.config import DataConfig
from hf_pe.data.files import READERS, format_of
from hf_pe.errors import UsageError

MEDIA = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".wav")
"""Endings of files that are examples themselves."""
TABLES = (*READERS, ".parquet", ".txt")
ABOUT = ("readme", "license", "licence", "copying", "notice", "citation", "changelog", "dataset_info", "dataset_infos")
"""Names, without endings, of files that document the data."""
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
"""Words in the name of a file or folder that assign it to a split."""
FALLBACKS = {"train": ("train", None), "validation": ("validation", "test", None, "train"), "test": ("test", None)}
"""The files that are used for a split: those of the first split in its list that exists; None: files of no split."""


@dataclass(frozen=True)
class Chosen:
    """Holds the files of a folder that are used for a split.

    Attributes:
        files: in order of their names.
        kind: "tables", "metadata" (tables that name images or recordings beside them) or "media".
        unused: all other files, except those of other splits and those that document the data.
    """

    files: tuple[Path, ...]
    kind: str
    unused: tuple[Path, ...] = ()


def choose(folder: Path, config: DataConfig, split: str) -> Chosen:
    """Choose the data files of `folder` that belong to `split`.

    Raises:
        UsageError: the folder has no data files, or none for this split.
    """
    kind, by_split, unused = _grouped(folder, config)
    if not by_split:
        expected = " ".join(MEDIA if config.media else TABLES)
        names = ", ".join(sorted({path.suffix or path.name for path in unused})[:8])
        raise UsageError(
            f"Data: {folder} is empty. Expected files of {expected} in it{f'; it has {names}' if names else ''}. "
            "To read text files with other endings, name each file."
        )
    requested = split_named(split)
    order = FALLBACKS.get(requested, (requested, None))
    if not any(name in by_split for name in order):
        raise UsageError(
            f"Data: {folder} has no file for the split '{split}', only for {', '.join(map(str, by_split))}, which are "
            "not used for it. To use them, name the files instead of the folder."
        )
    used = next(name for name in order if name in by_split)
    if used is not None:
        unused += by_split.get(None, [])
    elif requested == "train":  # no file is named for training: mention those named for tests, which are not used
        unused += by_split.get("test", [])
    return Chosen(tuple(by_split[used]), kind, tuple(unused))


def has_split(folder: Path, config: DataConfig, split: str) -> bool:
    """Return whether `folder` has files that belong to this split by their names."""
    return split_named(split) in _grouped(folder, config)[1]


def _grouped(folder: Path, config: DataConfig) -> tuple[str, dict[str | None, list[Path]], list[Path]]:
    """Return the kind of the data files, the data files by split, and the files that are no data."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not _hidden(p.relative_to(folder))]
    files = [path for path in files if path.name.partition(".")[0].lower() not in ABOUT]
    kind, data = _of_kind(files, config)
    data = [path for path in data if path.stat().st_size]
    by_split: dict[str | None, list[Path]] = {}
    for path in data:
        by_split.setdefault(_split_of(path.relative_to(folder).parts, kind), []).append(path)
    used = set(data)
    return kind, by_split, [path for path in files if path not in used] if kind != "metadata" else []


def split_named(word: str) -> str:
    """Return the split that a word such as "dev" stands for; an unknown word is the name of a split itself."""
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
    """Return the split that a file belongs to by the names of its folders and its own; None if they name no split.

    The folder that names the label of an image or a recording does not count.
    """
    counted: Iterable[str] = {"tables": parts, "metadata": parts[:-1], "media": parts[:-2]}[kind]
    for part in counted:
        words = re.split(r"[^a-z]+", part.lower())
        split = next((name for name, synonyms in SPLITS.items() if any(word in synonyms for word in words)), None)
        if split:
            return split
    return None


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)
