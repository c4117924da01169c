"""The work folder of `hf-pe run`: a hidden one beside the output, found again by its marker."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hf_pe.errors import UsageError
from hf_pe.outputs.known import known_parents, remember_run
from hf_pe.outputs.lock import is_locked, locked
from hf_pe.outputs.marker import (
    LOCK,
    Marker,
    holds_stages,
    is_same_place,
    make_work_folder,
    output_of,
    remove_work_folder,
    result_run,
    work_folders,
)
from hf_pe.outputs.place import Inputs, check_replaceable
from hf_pe.outputs.replace import claimed
from hf_pe.progress import say

Job = Mapping[str, Any]
"""What makes two runs the same job: the model as it is named, data, task and seed. Stages know their own settings."""


class Run(NamedTuple):
    """A run that may begin.

    Attributes:
        folder: for its stages.
        finished: its result is in place already; an earlier process was stopped after that.
    """

    folder: Path
    finished: bool


@contextmanager
def run_folder(
    output: Path,
    job: Job,
    *,
    resume: bool,
    restart: bool,
    overwrite: bool,
    inputs: Inputs | None = None,
    elsewhere: Iterable[Path] = (),
) -> Iterator[Run]:
    """Lock an output and yield the folder for the stages of its run, which is removed after success.

    Where something stops the run, finished stages stay there for `resume`.

    Args:
        output: folder of the result.
        job: see `Job`.
        resume: go on with the stages of an earlier run of this job, whatever its output was.
        restart: stages of an earlier run may go; who carries out the run removes them when it can begin.
        overwrite: a result that lies in `output` may be replaced.
        inputs: local paths that are read, by what they are.
        elsewhere: more folders in which to look for stages, for `resume`, beside those of earlier runs on this machine.

    Raises:
        UsageError: see `check_output`; another process writes there; finished stages of this job lie there and neither
            `resume` nor `restart` is given; `resume` fits to several, or only to runs of another job.
    """
    if resume and restart:
        raise UsageError("--resume and --restart exclude each other: the first goes on, the second begins anew.")
    job = json.loads(json.dumps(job))
    with claimed(output, inputs):
        _remove_what_is_worth_nothing(output, resume=resume)
        known = _runs(output, (*elsewhere, *known_parents()) if resume else ())
        folder = _choose(output, job, known, resume=resume, restart=restart)
        finished = folder is not None and resume and _is_finished(folder, output, known)
        if not finished:
            check_replaceable(output, overwrite=overwrite)
        if folder is None:
            folder = make_work_folder(output, "run", dict(job))
            remember_run(folder)
        try:
            with locked(folder / LOCK, f"Work folder {folder}"):
                yield Run(folder, finished)
        except BaseException:
            if not holds_stages(folder):
                remove_work_folder(folder)
            raise
        remove_work_folder(folder)


def _runs(output: Path, elsewhere: Iterable[Path]) -> dict[Path, Marker]:
    """Find the work folders of runs, beside the output and elsewhere; those that a living process uses are left out."""
    parents = {parent.resolve(): parent for parent in (output.parent, *elsewhere) if parent.is_dir()}
    every = {folder: marker for parent in parents.values() for folder, marker in work_folders(parent, "run")}
    return {folder: marker for folder, marker in every.items() if not is_locked(folder / LOCK)}


def _choose(output: Path, job: Job, known: Mapping[Path, Marker], *, resume: bool, restart: bool) -> Path | None:
    """Choose the folder to go on in, or to empty; None where a new one is to be made."""
    ours = {folder for folder, marker in known.items() if is_same_place(output_of(folder, marker), output)}
    same = [folder for folder, marker in known.items() if marker.job == job]
    here = [folder for folder in same if folder in ours]
    if here and not (resume or restart):
        raise UsageError(
            f"Finished stages of this run are in {here[0]}: an earlier one was stopped. Give --resume to go on after "
            "them, or --restart to begin anew (they are removed once the new run can begin)."
        )
    if here or not resume:
        return here[0] if here else None
    if len(same) > 1:
        listed = "; ".join(f"{folder} (for {known[folder].output})" for folder in same)
        raise UsageError(f"--resume: several stopped runs fit: {listed}. Give the --output of the one to go on with.")
    if same:
        say(f"going on with the stages in {same[0]}, which were made for {known[same[0]].output}")
        return same[0]
    others = sorted(ours)
    if others:
        raise UsageError(
            f"--resume: the stages in {others[0]} were made by another run: {_difference(known[others[0]].job, job)}. "
            "Set that back, or run without --resume: those stages stay until you remove them."
        )
    say("--resume: no stages of an earlier run of this recipe were found; it begins with the first")
    return None


def _is_finished(folder: Path, output: Path, known: Mapping[Path, Marker]) -> bool:
    return result_run(output) == known[folder].run


def _remove_what_is_worth_nothing(output: Path, *, resume: bool) -> None:
    """Remove the folders of runs into `output` that were killed before their first stage or after their last act."""
    for folder, marker in _runs(output, ()).items():
        finished = result_run(output) == marker.run
        worthless = not resume if finished else not holds_stages(folder)
        if worthless and is_same_place(output_of(folder, marker), output):
            remove_work_folder(folder)


def _difference(old: Job, new: Job) -> str:
    """Name the settings in which two jobs differ."""
    before, after = _flat(old), _flat(new)
    keys = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    return ", ".join(f"{key} was {before.get(key)!r}, now {after.get(key)!r}" for key in keys[:4])


def _flat(settings: Job, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
