"""Keep the named columns, and the rows that can be used."""

from typing import Any

import datasets

from hf_pe.data.config import DataConfig
from hf_pe.errors import UsageError, nearest


def usable(rows: datasets.Dataset, config: DataConfig, name: str) -> datasets.Dataset:
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
