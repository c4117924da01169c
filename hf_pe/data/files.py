"""Read the rows of one local file."""

from pathlib import Path

import pandas as pd

from hf_pe.data.config import DataConfig
from hf_pe.errors import UsageError

READERS = {
    ".csv": lambda path, encoding: pd.read_csv(path, encoding=encoding),
    ".tsv": lambda path, encoding: pd.read_csv(path, sep="\t", quoting=3, encoding=encoding),
    ".json": lambda path, encoding: pd.read_json(path, encoding=encoding),
    ".jsonl": lambda path, encoding: pd.read_json(path, lines=True, encoding=encoding),
    ".parquet": lambda path, encoding: pd.read_parquet(path),
}


def read_file(path: Path, config: DataConfig) -> pd.DataFrame:
    """Read the rows of one file in the format that its ending names, else as text lines.

    Raises:
        UsageError: the file cannot be read so.
    """
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


def formats() -> str:
    """Return what a local source can be, for errors."""
    return f"a file or folder of {' '.join(READERS)} or text lines"
