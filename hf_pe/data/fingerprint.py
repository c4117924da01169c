"""Computes a fingerprint of rows that includes the content of the images and recordings that they name."""

import hashlib
import json
from pathlib import Path
from typing import Any

import datasets

from hf_pe.data.config import DataConfig
from hf_pe.files.hashes import cached_sha256


def fingerprint(config: DataConfig, *parts: datasets.Dataset) -> str:
    """Return a hash of all rows, in order, and of the number of rows in each part.

    An image or a recording that a row names by its file counts by the content of that file, not by its name: the
    fingerprint does not change if the files are moved, and changes if a file is replaced.

    Args:
        config: names the columns with files.
        parts: the training rows and the evaluation rows.
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
    """Return the hash of the file that an image or a recording is read from; other values as text."""
    path = value.get("path") if isinstance(value, dict) and not value.get("bytes") else value
    try:
        if isinstance(path, str) and Path(path).is_file():
            return cached_sha256(Path(path))
    except OSError:  # a file that cannot be read is reported where it is opened
        pass
    return str(value)
