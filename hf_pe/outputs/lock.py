"""Locks a folder for one process by a file with its id and host; the lock of a dead process does not count."""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from hf_pe.errors import UsageError
from hf_pe.files.atomic import unique_sibling

Owner = dict[str, Any]
CLOCK_S = 2.0
"""Largest difference of two readings of a process's start time: the system computes it from its own start time."""
PATIENCE_S = 1.0
"""Seconds after which an empty lock file is stale: a process that makes one writes into it at once."""


@contextmanager
def locked(file: Path, what: str) -> Iterator[None]:
    """Hold the lock `file` inside the block; parent folders that are made for it and stay empty are removed again.

    If this process holds the lock already, nothing is done: a run and the saving of its result lock the same output.

    Args:
        file: the lock file.
        what: names the locked folder in the error, such as "Output build/small".

    Raises:
        UsageError: another living process holds the lock, or `file` cannot be written.
    """
    if _owner(file) == _this_process():
        yield
        return
    made = _take(file, what)
    try:
        yield
    finally:
        if _owner(file) == _this_process():
            file.unlink()
        for folder in made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def is_locked(file: Path) -> bool:
    """Return whether another process holds the lock `file`; a process of another host is assumed to be alive."""
    owner = _owner(file)
    return owner is not None and owner != _this_process() and _may_live(owner)


def _take(file: Path, what: str) -> list[Path]:
    """Make the lock file, and return the folders that were made for it, the innermost first."""
    made = [folder for folder in (file.parent, *file.parent.parents) if not folder.exists()]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with suppress(FileExistsError), file.open("x", encoding="utf-8") as lock:
                json.dump(_this_process(), lock)
                return made
            _remove_if_stale(file, what)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(
            f"{what}: {file.parent} cannot be written ({reason}). Give a folder that can be written."
        ) from error


def _remove_if_stale(file: Path, what: str) -> None:
    owner = _owner_when_written(file)
    if owner and _may_live(owner):
        remote = owner["host"] != platform.node()
        way_out = f"If it has ended, remove {file}." if remote else "Wait for it, stop it, or give another folder."
        raise UsageError(f"{what} is in use by process {owner['pid']} on {owner['host']}. {way_out}")
    aside = unique_sibling(file)
    try:
        file.rename(aside)
    except FileNotFoundError:  # its owner ended, or another process removed it
        return
    if _owner(aside) == owner:
        aside.unlink()
    else:  # between reading and renaming, another process removed the stale lock and made its own
        aside.rename(file)


def _owner_when_written(file: Path) -> Owner | None:
    """Return who holds the lock; an empty file is read again for up to `PATIENCE_S`, and {} if it stays empty."""
    end = time.monotonic() + PATIENCE_S
    while (owner := _owner(file)) == {} and time.monotonic() < end:
        time.sleep(0.02)
    return owner


def _owner(file: Path) -> Owner | None:
    """Return who holds the lock: None if there is no lock file, {} if it cannot be read."""
    try:
        owner: Owner = json.loads(file.read_text("utf-8"))
        return owner if isinstance(owner, dict) and {"pid", "host", "started"} <= owner.keys() else {}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return {}


def _may_live(owner: Owner) -> bool:
    """Return whether a process may be alive; this is unknown for a process of another host, and assumed."""
    if owner.get("host") != platform.node():
        return bool(owner)
    try:
        process = psutil.Process(owner["pid"])
        same = abs(process.create_time() - owner["started"]) < CLOCK_S  # else another process has got this id since
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _this_process() -> Owner:
    pid = os.getpid()
    return {"pid": pid, "host": platform.node(), "started": round(psutil.Process(pid).create_time(), 2)}
