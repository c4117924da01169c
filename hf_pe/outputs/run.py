"""Manages the work folder of `hf-pe run`, a hidden folder beside the output that `--resume` knows by its marker."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hf_pe.errors import UsageError
from hf_pe.outputs.lock import is_locked, locked
from hf_pe.outputs.marker import (
    LOCK,
    Marker,
    holds_stages,
    is_same_output,
    make_work_folder,
    output_of,
    remove_work_folder,
    result_run,
    work_folders,
)
from hf_pe.outputs.noted_runs import noted_parents, remember_run
from hf_pe.outputs.place import Inputs, check_replaceable
from hf_pe.outputs.replace import claimed
from hf_pe.progress import say

Job = Mapping[str, Any]
"""Settings by which two runs are the same job: the name of the model, data, task and seed; not those of stages."""


class Run(NamedTuple):
    """Holds the work folder of a run that may begin.

    Attributes:
        folder: for the stages of the run.
        finished: whether its result is in place already, because an earlier process was stopped after that.
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

    If the run is stopped, the folder with the finished stages remains for `resume`.

    Args:
        output: folder of the result.
        job: see `Job`.
        resume: continue with the stages of an earlier run of this job, whatever its output was.
        restart: stages of an earlier run may be removed; the caller removes them when the new run can begin.
        overwrite: an earlier result in `output` may be replaced.
        inputs: local paths that are read, by a phrase for messages.
        elsewhere: more folders to search for stages, for `resume`, beside those of earlier runs on this machine.

    Raises:
        UsageError: see `check_output`; another process writes the same output; there are finished stages of this job
            and neither `resume` nor `restart` is set; or `resume` matches several runs, or only runs of another job.
    """
    if resume and restart:
        raise UsageError("--resume and --restart exclude each other: the first goes on, the second begins anew.")
    job = json.loads(json.dumps(job))
    with claimed(output, inputs):
        _remove_useless_runs(output, resume=resume)
        runs = _idle_runs(output, (*elsewhere, *noted_parents()) if resume else ())
        folder = _choose(output, job, runs, resume=resume, restart=restart)
        finished = folder is not None and resume and _is_finished(folder, output, runs)
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


def _idle_runs(output: Path, elsewhere: Iterable[Path]) -> dict[Path, Marker]:
    """Return the work folders of runs, beside the output and elsewhere, that no living process uses."""
    parents = {parent.resolve(): parent for parent in (output.parent, *elsewhere) if parent.is_dir()}
    runs = {folder: marker for parent in parents.values() for folder, marker in work_folders(parent, "run")}
    return {folder: marker for folder, marker in runs.items() if not is_locked(folder / LOCK)}


def _choose(output: Path, job: Job, runs: Mapping[Path, Marker], *, resume: bool, restart: bool) -> Path | None:
    """Return the work folder to continue in, or to empty; None if a new one has to be made."""
    of_output = {folder for folder, marker in runs.items() if is_same_output(output_of(folder, marker), output)}
    of_job = [folder for folder, marker in runs.items() if marker.job == job]
    of_both = [folder for folder in of_job if folder in of_output]
    if of_both and not (resume or restart):
        raise UsageError(
            f"Finished stages of this run are in {of_both[0]}: an earlier one was stopped. Give --resume to go on "
            "after them, or --restart to begin anew (they are removed once the new run can begin)."
        )
    if of_both or not resume:
        return of_both[0] if of_both else None
    if len(of_job) > 1:
        listed = "; ".join(f"{folder} (for {runs[folder].output})" for folder in of_job)
        raise UsageError(
            f"--resume: several stopped runs match: {listed}. Give the --output of the run to continue with."
        )
    if of_job:
        say(f"continuing with the stages in {of_job[0]}, which were made for {runs[of_job[0]].output}")
        return of_job[0]
    if of_output:
        first = min(of_output)
        raise UsageError(
            f"--resume: the stages in {first} were made by another run: {_difference(runs[first].job, job)}. Set that "
            "back, or run without --resume: those stages stay until you remove them."
        )
    say("--resume: there are no stages of an earlier run of this recipe; the run begins with the first stage")
    return None


def _is_finished(folder: Path, output: Path, runs: Mapping[Path, Marker]) -> bool:
    return result_run(output) == runs[folder].run


def _remove_useless_runs(output: Path, *, resume: bool) -> None:
    """Remove the folders of runs into `output` that were killed before their first stage or after their result."""
    for folder, marker in _idle_runs(output, ()).items():
        finished = result_run(output) == marker.run
        useless = not resume if finished else not holds_stages(folder)
        if useless and is_same_output(output_of(folder, marker), output):
            remove_work_folder(folder)


def _difference(old: Job, new: Job) -> str:
    """Return the settings in which two jobs differ as a phrase for messages."""
    before, after = _flat(old), _flat(new)
    keys = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    return ", ".join(f"{key} was {before.get(key)!r}, now {after.get(key)!r}" for key in keys[:4])


def _flat(settings: Job, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
