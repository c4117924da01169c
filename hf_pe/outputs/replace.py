"""Replaces an output by a new result only when the result is complete, and repairs what a killed process has left.

The result is written into a work folder beside the output, which is then renamed:

    .small.hf_pe-1a2b3c4d/   contains hf_pe_work.json and
        new/                 the result while it is written
        whole/               `new`, renamed when it is complete
        old/                 the earlier content of the output

First the output is renamed to `old`, then `whole` to the output. If the process is killed between the two, there is no
output, and the next process renames `whole`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_pe.outputs.lock import locked
from hf_pe.outputs.marker import (
    NEW,
    OLD,
    WHOLE,
    is_same_output,
    lock_of,
    make_work_folder,
    mark_result,
    output_of,
    remove_unmarked,
    remove_work_folder,
    work_folders,
)
from hf_pe.outputs.place import Inputs, check_place, check_replaceable
from hf_pe.progress import say


@contextmanager
def claimed(output: Path, inputs: Inputs | None = None) -> Iterator[None]:
    """Check that `output` can be written, lock it inside the block, and repair what a killed process has left.

    Raises:
        UsageError: see `check_place` and `locked`.
    """
    what = f"Output {output}"
    check_place(output, what, inputs)
    with locked(lock_of(output), what):
        repair(output)
        yield


@contextmanager
def replaced(output: Path, *, overwrite: bool, inputs: Inputs | None = None, run: str = "") -> Iterator[Path]:
    """Yield a folder to write a result into, which becomes `output` when the block ends without an error.

    Until then, and after an error, `output` is unchanged.

    Args:
        output: folder of the result.
        overwrite: an earlier result in this folder may be replaced.
        inputs: local paths that are read, by a phrase for messages; `output` must not overlap them.
        run: name of the run that makes the result, for its marker.

    Raises:
        UsageError: see `check_output`; or another process writes the same output.
    """
    with claimed(output, inputs):
        check_replaceable(output, overwrite=overwrite)
        work = make_work_folder(output, "write")
        try:
            (work / NEW).mkdir()
            yield work / NEW
            check_replaceable(output, overwrite=overwrite)  # hours may have passed
            mark_result(work / NEW, run)
            (work / NEW).rename(work / WHOLE)
            _exchange(work, output)
        finally:
            _discard(work, output)


def repair(output: Path) -> None:
    """Finish or undo the replacement of `output` by processes that were killed; this process must hold the lock."""
    if not output.parent.is_dir():
        return
    for work, marker in work_folders(output.parent, "write"):
        if not is_same_output(output_of(work, marker), output):
            continue
        if not output.exists() and (work / WHOLE).is_dir():
            (work / WHOLE).rename(output)
            say(f"Repaired: an earlier process was stopped while it replaced {output}; its new result is in place now.")
        elif not output.exists() and (work / OLD).is_dir():
            (work / OLD).rename(output)
            say(f"Repaired: an earlier process was stopped while it replaced {output}; the old content is back.")
        _discard(work, output)
    remove_unmarked(output)


def _exchange(work: Path, output: Path) -> None:
    try:
        if output.exists():
            output.rename(work / OLD)
        (work / WHOLE).rename(output)
    except BaseException:
        if (work / OLD).exists() and not output.exists():
            (work / OLD).rename(output)
        raise


def _discard(work: Path, output: Path) -> None:
    """Remove a work folder, unless it contains the only copy of the earlier content of `output`."""
    replaced_by_this = output.exists() and not (work / WHOLE).exists()
    if replaced_by_this or not (work / OLD).exists():
        remove_work_folder(work)
