"""Manages a folder for the finished stages of a run: it is marked and locked, and emptied only when a run begins."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_pe.errors import UsageError
from hf_pe.files.atomic import unique_sibling
from hf_pe.outputs.lock import is_locked, locked
from hf_pe.outputs.marker import LOCK, WORK_MARKER, Marker, holds_stages, mark_work, read_marker
from hf_pe.outputs.place import Inputs, check_place

_KEPT = (WORK_MARKER, LOCK)


def check_stages_folder(folder: Path, *, resume: bool, restart: bool, inputs: Inputs | None = None) -> None:
    """Refuse a folder that cannot be used for the stages of this run; nothing is changed.

    Raises:
        UsageError: see `check_place`; `resume` and `restart` are both set; another process uses the folder; it contains
            other files; or it contains finished stages and neither `resume` nor `restart` is set.
    """
    if resume and restart:
        raise UsageError("resume and restart exclude each other: the first goes on, the second begins anew.")
    check_place(folder, f"Work folder {folder}", inputs)
    if not folder.exists():
        return
    if is_locked(folder / LOCK):
        with locked(folder / LOCK, f"Work folder {folder}"):  # its error names the process
            pass
    if holds_stages(folder) and not (resume or restart):
        raise UsageError(
            f"Finished stages of an earlier run are in {folder}. resume=True (--resume) goes on after them, "
            "restart=True (--restart) removes them once the new run can begin."
        )
    if read_marker(folder) is None and not holds_stages(folder) and any(folder.iterdir()):
        raise UsageError(
            f"Work folder {folder} contains other files. Give an empty folder, or one that does not exist."
        )


@contextmanager
def stages_folder(folder: Path, *, resume: bool, restart: bool, inputs: Inputs | None = None) -> Iterator[Path]:
    """Mark and lock a folder for stages inside the block; with `restart` its old stages are removed first.

    Raises:
        UsageError: see `check_stages_folder`.
    """
    check_stages_folder(folder, resume=resume, restart=restart, inputs=inputs)
    with locked(folder / LOCK, f"Work folder {folder}"):
        if read_marker(folder) is None:
            mark_work(folder, Marker("run", str(folder.absolute())))
        if restart:
            _empty(folder)
        yield folder


def _empty(folder: Path) -> None:
    for path in [path for path in folder.iterdir() if path.name not in _KEPT]:
        if path.is_dir() and not path.is_symlink():
            aside = unique_sibling(path)  # if this process is killed meanwhile, no incomplete stage remains
            path.rename(aside)
            shutil.rmtree(aside)
        else:
            path.unlink()
