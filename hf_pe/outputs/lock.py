"""One process at a time: a lock file with process and host, which a dead process does not hold."""

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
"""Start times of one process differ by less: the system computes them from the time of its own start."""
PATIENCE_S = 1.0
"""How long a lock file may be empty: whoever makes it writes into it at once."""


@contextmanager
def locked(file: Path, what: str) -> Iterator[None]:
    """Hold the lock `file`; parents that are made for it and stay empty are removed again.

    A process that holds it already passes: work and the saving of its result lock the same output.

    Args:
        file: of the lock.
        what: is locked, in the error: "Output build/small".

    Raises:
        UsageError: a living process holds it, or `file` cannot be written.
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
            with suppress(OSError):  # something lies in it
                folder.rmdir()


def is_locked(file: Path) -> bool:
    """Return whether another process, as far as can be known from here, holds the lock `file`."""
    owner = _owner(file)
    return owner is not None and owner != _this_process() and _may_live(owner)


def _take(file: Path, what: str) -> list[Path]:
    """Make the lock file; returns the folders that were made for it, the innermost first."""
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
            f"{what}: {file.parent} cannot be written ({reason}). Give a folder in a place that can be."
        ) from error


def _remove_if_stale(file: Path, what: str) -> None:
    owner = _owner_when_written(file)
    if owner and _may_live(owner):
        alien = owner["host"] != platform.node()
        way_out = f"If that one is over, remove {file}." if alien else "Wait for it, stop it, or give another folder."
        raise UsageError(f"{what} is in use by process {owner['pid']} on {owner['host']}. {way_out}")
    aside = unique_sibling(file)
    try:
        file.rename(aside)
    except FileNotFoundError:  # its owner ended, or someone else found it stale
        return
    if _owner(aside) == owner:
        aside.unlink()
    else:  # between looking and renaming another process removed the stale one and made its own
        aside.rename(file)


def _owner_when_written(file: Path) -> Owner | None:
    """Read the lock; one that is still empty is waited for, and stale if it stays so."""
    end = time.monotonic() + PATIENCE_S
    while (owner := _owner(file)) == {} and time.monotonic() < end:
        time.sleep(0.02)
    return owner


def _owner(file: Path) -> Owner | None:
    """Return who holds the lock: None where there is none, {} where it cannot be read."""
    try:
        owner: Owner = json.loads(file.read_text("utf-8"))
        return owner if isinstance(owner, dict) and {"pid", "host", "started"} <= owner.keys() else {}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return {}


def _may_live(owner: Owner) -> bool:
    """Return whether a process lives; one of another host cannot be seen from here, and may."""
    if owner.get("host") != platform.node():
        return bool(owner)
    try:
        process = psutil.Process(owner["pid"])
        same = abs(process.create_time() - owner["started"]) < CLOCK_S  # else the number belongs to another by now
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _this_process() -> Owner:
    pid = os.getpid()
    return {"pid": pid, "host": platform.node(), "started": round(psutil.Process(pid).create_time(), 2)}
