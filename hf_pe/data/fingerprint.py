"""A fingerprint of rows, the files that they name included."""

import hashlib
import json
from pathlib import Path
from typing import Any

import datasets

from hf_pe.data.config import DataConfig
from hf_pe.files.hashes import remembered_sha256


def fingerprint(config: DataConfig, *parts: datasets.Dataset) -> str:
    """Return a hash of all rows, in order, and of where each part ends.

    An image or a recording that a row names by its file counts by the content of that file, not by its name: the
    fingerprint is the same where the files lie elsewhere, and another one where a file was exchanged.

    Args:
        config: tells which columns name files.
        parts: the rows to train on, the rows to evaluate on.
    """
    media = {column for column in (config.image, config.audio) if column}
    digest = hashlib.sha256()
    for part in parts:
        for row in part:
            values = {name: content_of(value) if name in media else str(value) for name, value in dict(row).items()}
            digest.update(json.dumps(values, sort_keys=True).encode())
        digest.update(b"\0end of part")
    return digest.hexdigest()[:16]


def content_of(value: Any) -> str:
    """Return what stands for an image or a recording: the hash of its file where it is a file's name."""
    path = value.get("path") if isinstance(value, dict) and not value.get("bytes") else value
    try:
        if isinstance(path, str) and Path(path).is_file():
            return remembered_sha256(Path(path))
    except OSError:  # a file that cannot be read is reported where it is opened
        pass
    return str(value)
