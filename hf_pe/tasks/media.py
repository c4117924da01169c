"""Checks that images and recordings can be read before work begins."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import datasets

from hf_pe import progress
from hf_pe.errors import UsageError
from hf_pe.tasks.base import TaskData

NAMED = 3
"""Most broken files that an error message names."""


def with_readable_media(data: TaskData, column: str, read: Callable[[Any], Any]) -> TaskData:
    """Read the evaluation and calibration files once; return data whose `check_training_rows` reads all the others.

    A broken file would stop training half-way. Reading a million images takes an hour, however, so that only stages
    that train call `check_training_rows`.

    Args:
        data: has a column of images or recordings.
        column: with the images or recordings.
        read: reads one file; raises UsageError if it cannot.

    Raises:
        UsageError: files cannot be read; names the first `NAMED` of them, and their number.
    """
    require_readable([data.eval, data.calibration], column, read)
    calibrated = set(data.calibration_rows)
    rest = data.train.select([number for number in range(len(data.train)) if number not in calibrated])
    return replace(data, check_training_rows=lambda: require_readable([rest], column, read))


def require_readable(parts: list[datasets.Dataset], column: str, read: Callable[[Any], Any]) -> None:
    """Read every image or recording of `parts` once.

    Args:
        parts: rows.
        column: with the images or recordings.
        read: reads one file; raises UsageError if it cannot.

    Raises:
        UsageError: files cannot be read; names the first `NAMED` of them, and their number.
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
