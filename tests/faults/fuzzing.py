"""Gives broken inputs to the commands that read them, each in a forked process with limits on memory and time.

A program of its own, so that it can fork before anything has started threads: `fuzzing.py PLACE COUNT [STEP]` tries
every STEP-th of COUNT inputs in folders that it makes in PLACE and prints one JSON line for each.
"""

import contextlib
import gc
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

from tests.faults.breaking import BrokenInput, broken_inputs, damage
from tests.faults.ground import make_ground, make_results
from tests.faults.killing import forked, measure_quickly

SECONDS, BYTES = 60, 4_000_000_000
"""What a broken input may take of time, and of memory on top of what is there."""


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file, and of each link its target."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def outcome(status: int, said: str) -> str:
    """Return what came of a command: passed, refused, or what is wrong."""
    if "Traceback (most recent call last)" in said:
        return "traceback"
    if status == 0:
        return "passed"
    if status in (1, 2) and ("Error:" in said or "Stopped:" in said) and len(said.split()) > 5:
        return "refused"
    return {-signal.SIGALRM: "timeout"}.get(status, f"ended with {status}")


def changed(before: dict[str, str], after: dict[str, str], command: tuple[str, ...], result: str) -> list[str]:
    """Return the user's files that a command changed or left behind, other than what it was asked to make."""
    differing = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    if result == "passed":  # what was asked for was made
        written = ("result/README.md", "result/report.json")  # the card, and its seal
        asked = {"card": written, "run": (".stopped.", "stopped/", "out/")}.get(command[0], ("out/",))
        return sorted(name for name in differing if not name.startswith(asked))
    locks = [name for name in differing if name.endswith(".hf_pe.lock")]
    stages = [name for name in differing if name.startswith(".") and ".hf_pe-" in name]  # work of a stopped run
    return sorted(set(differing) - set(locks) - set(stages if command[0] == "run" else []))


def attempt(place: Path, whole: Path, broken: BrokenInput) -> tuple[str, str]:
    """Give a broken input to its command; returns what came of it, and what was said."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place, symlinks=True)
    damage(place, broken)
    return tried(place, broken.command)


def tried(place: Path, command: tuple[str, ...]) -> tuple[str, str]:
    """Give a command in a folder; returns what came of it, and what was said."""
    before, log = hashes(place), place.with_suffix(".log")
    log.unlink(missing_ok=True)

    def work() -> None:
        os.chdir(place)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        measure_quickly()
        from hf_pe.cli import app

        app(list(command))

    status = forked(work, log)
    said = log.read_text("utf-8", "replace")
    result = outcome(status, said)
    differing = changed(before, hashes(place), command, result)
    return (f"changed: {', '.join(differing[:3])}" if differing else result), said


def import_all() -> None:
    """Import what the commands, and the making of what they read, import: each forked process would do it again."""
    import matplotlib.figure  # noqa: F401
    import pandas  # noqa: F401
    import peft  # noqa: F401
    import PIL.PngImagePlugin  # noqa: F401
    import scipy.io.wavfile  # noqa: F401

    import hf_pe.recipe_file
    import hf_pe.run.compress
    import hf_pe.run.folder  # noqa: F401


def main(folder: Path, count: int, step: int = 1) -> None:
    """Print a line for each input: number, kind, damage, command, what came of it, and the end of what was said."""
    import torch

    import_all()
    from hf_pe.cli import app

    torch.set_num_threads(1)
    whole, place = folder / "whole", folder / "place"
    place.mkdir(parents=True)
    os.chdir(place)
    assert forked(lambda: make_ground(place)) == 0
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        app(["plan", "texts.yaml"])  # imports all
    gc.freeze()
    assert forked(lambda: make_results(place)) == 0
    shutil.copytree(place, whole, symlinks=True)
    every = broken_inputs(count)
    if step == 1:
        for command in sorted({broken.command for broken in every}):
            shutil.rmtree(place)
            shutil.copytree(whole, place, symlinks=True)
            result, said = tried(place, command)
            assert result == "passed", f"{' '.join(command)} on whole files: {result}\n{said}"
    for broken in every[::step]:
        result, said = attempt(place, whole, broken)
        line = [broken.number, broken.kind, broken.label, " ".join(broken.command), result, said[-2000:]]
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), *map(int, sys.argv[2:]))
