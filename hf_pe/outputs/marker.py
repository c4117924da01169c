"""Reads and writes markers: small files that show that hf_pe made a folder, and for what purpose.

There are two kinds. A work folder has a marker with its output and its job; a result has one with the name of its run
and the list of its files.
"""

import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hf_pe.files.atomic import files_below, unique_sibling
from hf_pe.files.json_files import read_object_if_any

WORK_MARKER = "hf_pe_work.json"
RESULT_MARKER = ".hf_pe.json"
REPORT = "report.json"
LOCK = "hf_pe.lock"
LEFT_BEHIND = (RESULT_MARKER, ".DS_Store", "Thumbs.db", LOCK)
"""Names of files that belong to nobody: our marker and lock, and those that file managers write."""
LEFT_AT_TOP = (".cache",)
"""Names that belong to nobody in the folder itself, but not below it: `hf download` writes .cache."""
KINDS = (".safetensors", ".json", ".yaml", ".md", ".txt", ".png", ".model", ".jinja", ".py", ".onnx", ".data", "")
"""Endings of the files of results."""
MAIN = "main"
"""Name of the main result, which is not quantized, among its variants: as a folder and as a branch."""
NEW, WHOLE, OLD = "new", "whole", "old"
"""Folders in a work folder: a result that is being written, a complete result, and the content that it replaces."""


@dataclass(frozen=True)
class Marker:
    """Describes a work folder.

    Attributes:
        kind: "write" for a result that is being written, "run" for the stages of a run.
        output: absolute path of the output.
        job: settings by which two runs are the same job.
        run: a random name of the run, which the marker of the result repeats.
        host: name of the machine that made the folder.
        pid: id of the process that made the folder.
        format_version: of the marker.
    """

    kind: Literal["write", "run"]
    output: str
    job: dict[str, Any] = field(default_factory=dict)
    run: str = field(default_factory=lambda: secrets.token_hex(8))
    host: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)
    format_version: int = 1


def lock_of(output: Path) -> Path:
    """Return the lock file of an output, beside it."""
    return output.with_name(f".{output.name[:50]}.hf_pe.lock")


def make_work_folder(output: Path, kind: Literal["write", "run"], job: dict[str, Any] | None = None) -> Path:
    """Make a hidden folder with a marker beside `output`."""
    folder = unique_sibling(output)
    folder.mkdir(parents=True)
    mark_work(folder, Marker(kind, str(output.absolute()), job or {}))
    return folder


def mark_work(folder: Path, marker: Marker) -> None:
    """Write the marker of a work folder."""
    (folder / WORK_MARKER).write_text(json.dumps(asdict(marker), indent=2) + "\n", "utf-8")


def read_marker(folder: Path) -> Marker | None:
    """Return the marker of a work folder; None if it has none that can be read."""
    content = read_object_if_any(folder / WORK_MARKER)
    try:
        marker = None if content is None else Marker(**content)
    except TypeError:
        return None
    if marker is None or not isinstance(marker.job, dict):
        return None
    return marker if all(isinstance(text, str) for text in (marker.kind, marker.output, marker.run)) else None


def work_folders(parent: Path, kind: Literal["write", "run"]) -> Iterator[tuple[Path, Marker]]:
    """Yield the work folders of a kind in `parent`, with their markers."""
    for folder in sorted(parent.glob(".*.hf_pe-*")):
        marker = None if folder.is_symlink() else read_marker(folder)
        if marker is not None and marker.kind == kind:
            yield folder, marker


def output_of(folder: Path, marker: Marker) -> Path:
    """Return the output of a work folder, which is beside it, even if both have been moved."""
    return folder.with_name(Path(marker.output).name)


def is_same_output(first: Path, second: Path) -> bool:
    """Return whether two paths name the same output."""
    return first.parent.resolve() / first.name == second.parent.resolve() / second.name


def remove_work_folder(folder: Path) -> None:
    """Remove a work folder, its marker last, so that the rest of it is still marked if the process is killed."""
    assert (folder / WORK_MARKER).is_file(), f"{folder} has no marker"
    for path in folder.iterdir():
        if path.name != WORK_MARKER:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    (folder / WORK_MARKER).unlink()
    folder.rmdir()


def remove_unmarked(output: Path) -> None:
    """Remove work folders of `output` whose process was killed while it wrote the marker; they contain nothing else."""
    begin = unique_sibling(output).name[:-8]
    for folder in [path for path in output.parent.iterdir() if path.name.startswith(begin)]:
        if not folder.is_symlink() and folder.is_dir() and read_marker(folder) is None:
            with suppress(OSError):  # it contains other files, so it is not ours
                if [path.name for path in folder.iterdir()] == [WORK_MARKER]:
                    (folder / WORK_MARKER).unlink()
                folder.rmdir()


def holds_stages(folder: Path) -> bool:
    """Return whether a folder contains finished stages, or checkpoints of a training."""
    return any(folder.glob("*/stage.json")) or any(folder.glob("*/checkpoint-*"))


def mark_result(folder: Path, run: str) -> None:
    """Write the marker of a result, with the run that made it and the list of its files."""
    content = {"format_version": 1, "run": run, "files": _files(folder)}
    (folder / RESULT_MARKER).write_text(json.dumps(content) + "\n", "utf-8")


def foreign_files(output: Path) -> list[str]:
    """Return the files in a result that hf_pe did not write, by their paths inside the folder.

    The marker lists the files that hf_pe wrote. Results of earlier versions have no list; in these, files are foreign
    if no result has files with their ending.
    """
    written = (read_object_if_any(output / RESULT_MARKER) or {}).get("files")
    if isinstance(written, list):
        return sorted(set(_files(output)) - set(map(str, written)))
    return [name for name in _files(output) if Path(name).suffix not in KINDS]


def _files(folder: Path) -> list[str]:
    """Return the paths of the files in a folder, without those that file managers and downloads write."""
    files = files_below(folder, lambda inside: inside.name in LEFT_BEHIND or str(inside) in LEFT_AT_TOP)
    return [path.relative_to(folder).as_posix() for path in files]


def run_id(folder: Path | None) -> str:
    """Return the name of the run whose stages are in `folder`; an empty text if the folder has no marker."""
    marker = None if folder is None else read_marker(folder)
    return "" if marker is None else marker.run


def result_run(output: Path) -> str | None:
    """Return the name of the run that made a result; None if `output` has no marker of a result."""
    marker = read_object_if_any(output / RESULT_MARKER)
    return None if marker is None else str(marker.get("run", ""))


def is_result(folder: Path) -> bool:
    """Return whether hf_pe wrote a folder.

    Such a folder has the marker of a result or a report of any version, or it contains the folders of a main result and
    its variants and nothing else. A user's folder with several results does not count.
    """
    if result_run(folder) is not None or _has_report(folder):
        return True
    return _has_report(folder / MAIN) and all(_has_report(inner) for inner in folder.iterdir())


def _has_report(folder: Path) -> bool:
    report = read_object_if_any(folder / REPORT)
    return report is not None and "format_version" in report
