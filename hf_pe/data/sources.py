"""Turn what a source names into rows: builtin texts, files, folders, Hub data sets."""

from pathlib import Path

import datasets
import pandas as pd

from hf_pe.data.builtin import builtin_rows
from hf_pe.data.config import DataConfig
from hf_pe.data.files import READERS, formats, read_file
from hf_pe.errors import UsageError

MEDIA = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".wav")
"""Files that are examples themselves."""


def source_rows(name: str, config: DataConfig, split: str) -> datasets.Dataset:
    """Return the rows of one source with all their columns.

    Raises:
        UsageError: it is missing, empty or cannot be read.
    """
    if name.startswith("builtin:"):
        return builtin_rows(name)
    path = Path(name).expanduser()
    if path.exists():
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        if not files or all(f.stat().st_size == 0 for f in files):
            raise UsageError(f"Data: {name} is empty. Expected rows in {formats()}.")
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
            pd.concat([read_file(f, config) for f in files if f.stat().st_size]), preserve_index=False
        )
    if path.suffix or name.count("/") > 1 or name.startswith((".", "~", "/")):
        raise UsageError(f"Data: {name} does not exist. Expected {formats()}, or the id of a Hub data set.")
    try:
        found: datasets.Dataset = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"Data: {name} is no local file or folder, and as a Hub data set: {error}") from error
    return found


def _with_files(metadata: Path, config: DataConfig) -> datasets.Dataset:
    """Rows of a metadata file, with the files that its `file_name` names beside it."""
    frame = read_file(metadata, config)
    if "file_name" not in frame:
        raise UsageError(f"Data: {metadata} has no column 'file_name'; it has {', '.join(map(str, frame))}.")
    frame[config.image or config.audio or ""] = [str(metadata.parent / name) for name in frame.pop("file_name")]
    return datasets.Dataset.from_pandas(frame, preserve_index=False)
