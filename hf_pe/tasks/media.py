"""Check that images and recordings can be read before work begins."""

from collections.abc import Callable
from typing import Any

import datasets

from hf_pe import progress
from hf_pe.errors import UsageError

NAMED = 3
"""Files that an error names."""


def require_readable(parts: list[datasets.Dataset], column: str, read: Callable[[Any], Any]) -> None:
    """Read every image or recording once: one that is broken would stop a training half-way.

    Args:
        parts: the rows to train on, the rows to evaluate on.
        column: with the images or recordings.
        read: raises UsageError at one that it cannot read.

    Raises:
        UsageError: names the first `NAMED` that cannot be read, and how many there are.
    """
    total, done, broken = sum(map(len, parts)), 0, []
    for part in parts:
        for row in part.select_columns([column]):
            try:
                read(row[column])
            except UsageError as error:
                broken.append(str(error))
            done += 1
            progress.advance(f"checking column {column}", done, total)
    if broken:
        more = f"\n... and {len(broken) - NAMED:,} more." if len(broken) > NAMED else ""
        raise UsageError(
            f"Data: {len(broken):,} of {total:,} rows of column '{column}' cannot be read. Repair these or remove them "
            "from the data:\n" + "\n".join(broken[:NAMED]) + more
        )
