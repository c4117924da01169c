"""Kills a tiny run at a numbered change of the file system, in a forked process; then resumes it, and compares.

A program of its own, so that it can fork before anything has started threads: `killing.py PLACE every` tries all points
in folders that it makes in PLACE, `killing.py PLACE kinds` one of each kind. It prints one JSON line for each.

Python tells an audit hook of every file that it opens for writing, renames or removes, before it does so: the process
is killed there, or (`torn`) when the file is open and nothing is in it yet. Weights are written by compiled code that
tells no one; a kill in the middle of them (`half`) leaves half a file.
"""

import contextlib
import functools
import gc
import hashlib
import io
import json
import os
import re
import runpy
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

KILLED = 137
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}
TEXTS = [f"The {a} {b} {c}." for a in ("small", "old", "quiet", "young") for b in ("dog", "cat", "bird") for c in ("sleeps", "runs", "looks at the house")]  # fmt: skip
TIMES = ("seconds", "evaluation_seconds", "teacher_share", "latency", "peak_memory_bytes", "date", "files", "seal")
"""Of a report: what is measured anew."""
BESIDE = ("out.new", "out.old", "out.partial", "text.txt", "tiny.yaml")


def make_model(folder: Path) -> None:
    """Save a tiny encoder with a tokenizer that knows the words of TEXTS."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from hf_pe.dummies.tiny import randomize_weights_

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted({word for text in TEXTS for word in text.lower().strip(".").split()})
    raw = Tokenizer(models.WordPiece({word: i for i, word in enumerate([*special, ".", *words])}, unk_token="[UNK]"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    raw.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=raw, **names).save_pretrained(folder)
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    config = BertConfig(vocab_size=64, max_position_embeddings=32, pad_token_id=0, **sizes)
    randomize_weights_(BertModel(config)).save_pretrained(folder)


def recipe(model: Path) -> dict[str, Any]:
    """Prune, distil with checkpoints, and pack a variant: a run with every kind of file."""
    return {
        "model": str(model),
        "task": "embedding",
        "data": {"train": "text.txt", "max_length": 16, "eval_fraction": 0.3},
        "recipes": [
            {"recipe": "prune", "keep": {"ffn": 0.5, "layers": 2}},
            {"recipe": "distil", "steps": 2, "batch_size": 4, "checkpoint_every": 1},
        ],
        "variants": {"nf4": {"recipe": "quantize"}},
    }


def prepare(place: Path, model: Path) -> None:
    """Lay out what the user has: a recipe, data, an earlier result, and folders with names near that of the output."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "text.txt").write_text("\n".join(TEXTS))
    (place / "tiny.yaml").write_text(json.dumps(recipe(model)))
    for name in ("out", "out.old", "out.new", "out.partial"):
        (place / name).mkdir()
        (place / name / "mine.txt").write_text("mine")
    (place / "out" / ".hf_pe.json").write_text('{"format_version": 1, "run": ""}')


KINDS_OF_PLACE = (
    (r"([0-9]+-(prune|distil)|variant-[a-z0-9]+)-#", "STAGE"),
    (r"STAGE\.training(/checkpoint-[0-9]+)?", "TRAINING"),
    (r"\.out\.hf_pe-#/\.STAGE\.hf_pe-#|\.out\.hf_pe-#", "WORK"),
    (r"(WORK/)?\.(out|STAGE)\.hf_pe\.lock", "OUTPUT.hf_pe.lock"),
    (r"/(main|nf4)/", "/RESULT/"),
    (r"/\.[A-Za-z_]+\.[a-z]+\.hf_pe-#", "/FILE.hf_pe-#"),
    (r"[A-Za-z_]+\.png$|(report|README|whole)\.(json|md)$", "FILE"),
    (r"(WORK/new/RESULT|WORK/TRAINING)/FILE", "FOLDER/FILE"),
    (r"-> (out|WORK/STAGE)$", "-> OUTPUT"),
)
"""Names of places that are alike, tried one after the other."""


class Point(NamedTuple):
    """Where a run is killed: at which of its changes, what that is, and how."""

    number: int
    label: str
    how: str = "before"

    @property
    def kind(self) -> str:
        """Points of one kind change the same thing in the same way; which of several files it is does not matter.

        Empty for a kill that is covered by others: before a file or folder is made is after the change before.
        """
        operation, _, what = self.label.partition(" ")
        if self.how == "before" and operation in ("open", "save", "mkdir"):
            return ""
        for pattern, name in KINDS_OF_PLACE:
            what = re.sub(pattern, name, what)
        operation = operation.replace("rmdir", "remove")
        if operation in ("open", "save"):
            what = what.replace("WORK/base/", "WORK/new/")  # a model is saved in both
        parts = what.split("/")
        if operation == "remove" and parts[-1] not in ("WORK", "hf_pe_work.json", "hf_pe.lock", "OUTPUT.hf_pe.lock"):
            what = "/".join(parts[:2]) + "/..."
        elif operation != "rename" and "hf_pe" not in parts[-1]:
            what = "/".join(parts[:-1]) + "/..."
        return f"{self.how} {operation} {what}"


def watch(place: Path, at: Callable[[Point, Path], None]) -> None:  # noqa: C901  one step after the other
    """Call `at` at every point of this process under `place`, from now on; the process may be ended there."""
    root = os.path.realpath(place)
    count = [0]

    def change(operation: str, paths: list[str], how: tuple[str, ...]) -> None:
        names = (re.sub(r"[0-9a-f]{8,}", "#", path.removeprefix(root + os.sep)) for path in paths)
        label = f"{operation} {' -> '.join(names)}"
        for each in how:
            at(Point(count[0], label, each), Path(paths[0]))
        count[0] += 1

    def hook(event: str, values: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(values[0], (str, bytes)) and _writes(values[1], values[2])
        if opened or event in CHANGES:
            paths = _paths(event, values)
            if paths[0].startswith(root + os.sep) and (event != "os.remove" or os.path.lexists(paths[0])):
                change(event.removeprefix("os."), paths, ("before", "torn") if opened else ("before",))

    def saving(save: Callable[..., None]) -> Callable[..., None]:
        def watched(tensors: Any, file: Any, *rest: Any, **more: Any) -> None:
            if os.path.realpath(file).startswith(root + os.sep):
                change("save", [os.path.realpath(file)], ("before", "half"))
            save(tensors, file, *rest, **more)

        return watched

    sys.addaudithook(hook)
    for module in list(sys.modules.values()):
        for name in ("save_file", "safe_save_file"):
            if getattr(getattr(module, name, None), "__module__", "") == "safetensors.torch":
                setattr(module, name, saving(getattr(module, name)))


def _writes(mode: str | None, flags: int) -> bool:
    return any(c in mode for c in "wxa+") if mode else bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _paths(event: str, values: tuple[Any, ...]) -> list[str]:
    """Return the paths that change, whole."""
    if event == "os.rename":
        return [_whole(values[0], values[2]), _whole(values[1], values[3])]
    folder = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2}.get(event)
    return [_whole(values[0], -1 if folder is None else values[folder])]


def _whole(name: str | bytes | int, folder: int) -> str:
    name = os.fsdecode(name)
    if folder != -1:
        name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
    parent, last = os.path.split(os.path.abspath(name))
    return os.path.join(os.path.realpath(parent), last)


def kill_at(target: Point) -> Callable[[Point, Path], None]:
    """Return what ends the process at `target`."""
    done: list[Point] = []

    def at(point: Point, path: Path) -> None:
        if done or (point.number, point.how) != (target.number, target.how):
            return
        done.append(point)  # what follows is seen too
        if point.how == "torn":
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC))
        if point.how == "half":
            path.write_bytes(b"\0" * 1000)
        os._exit(KILLED)

    return at


def run(place: Path, *flags: str, at: Callable[[Point, Path], None] | None = None) -> int:
    """Run the recipe in a forked process; returns its exit status. What it prints is in `place`.log."""

    def work() -> None:
        os.chdir(place)
        measure_quickly()
        if at is not None:
            watch(place, at)
        from hf_pe.cli import app

        app(["run", "tiny.yaml", "--output", "out", "--overwrite", *flags])

    return forked(work, place.with_suffix(".log"))


def forked(work: Callable[[], None], log: Path | None = None) -> int:
    """Return the exit status of `work` in a forked process on one thread, whose output goes to `log`.

    The process makes torch's thread pool anew before it begins: the pool does not survive a fork, and threads that
    load weights and ask for it at the same time end the process ("Invalid thread pool!").
    """
    import torch

    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 99
    try:
        if log is not None:
            file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
        torch.set_num_threads(1)
        work()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def measure_quickly() -> None:
    """Leave out what takes time and changes no weights: times, many resamples, the drawing of pictures, new processes."""
    import matplotlib.figure

    import hf_pe.fresh.run
    import hf_pe.measure
    import hf_pe.run.side_by_side
    from hf_pe.report import Latency

    def latency(models: dict[str, Any], *, batch: int, length: int, **_: Any) -> dict[str, Latency]:
        taken = Latency(batch=batch, length=length, threads=1, rounds=1, p50_ms=1.0, p90_ms=1.0)
        return dict.fromkeys(models, taken)

    def savefig(_: Any, file: Path, **__: Any) -> None:
        file.write_bytes(b"a picture")

    hf_pe.measure.latency = latency  # type: ignore[assignment]
    hf_pe.measure.flops = lambda *_, **__: 1  # type: ignore[assignment]
    hf_pe.run.side_by_side.changes = functools.partial(hf_pe.run.side_by_side.changes, resamples=4)  # type: ignore[assignment]
    matplotlib.figure.Figure.savefig = savefig  # type: ignore[assignment,method-assign]
    hf_pe.fresh.run._by_server = _forked_program  # type: ignore[assignment]


def _forked_program(program: str, argument: str, log: str, _: dict[str, str]) -> int:
    """Run a Python program as its own process does, with what is imported already."""

    def work() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "hf_pe"]:
            del sys.modules[name]
        sys.argv = [program, argument]
        runpy.run_path(program, run_name="__main__")

    return forked(work, Path(log))


def outcome(place: Path) -> dict[str, Any]:
    """Return what must not depend on a kill: weights, plan and report without times."""
    found: dict[str, Any] = {}
    for folder in sorted((place / "out").iterdir()):
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            if file.suffix == ".safetensors":
                found[f"{folder.name}/{file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
            if file.name in ("plan.json", "report.json"):
                found[f"{folder.name}/{file.name}"] = _timeless(json.loads(file.read_text()))
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(each) for key, each in value.items() if key not in TIMES}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def faults(place: Path, before: bool) -> list[str]:
    """Say what is wrong with the user's files: right after a kill (`before` the resume), or after the resume."""
    wrong = [name for name in BESIDE if not (place / name).exists()]
    wrong += [name for name in BESIDE[:3] if (place / name / "mine.txt").read_text() != "mine"]
    output, names = place / "out", {path.name for path in place.iterdir()}
    if before:
        earlier = (output / "mine.txt").is_file()
        whole = all((output / name / "README.md").is_file() for name in ("main", "nf4"))
        kept = any(name.startswith(".out.hf_pe-") for name in names) and not output.exists()
        return wrong + (
            [] if earlier or whole or kept else ["the output is neither the earlier result nor the new one"]
        )
    return wrong + [f"left: {name}" for name in names - {"out", *BESIDE}]


def attempt(place: Path, model: Path, point: Point, expected: dict[str, Any]) -> list[str]:
    """Kill a run at a point, resume it; returns what is wrong then."""
    prepare(place, model)
    status = run(place, at=kill_at(point))
    if status != KILLED:
        return [f"was not killed, ended with {status}"]
    wrong = faults(place, before=True)
    status = run(place, "--resume")
    if status:
        return [*wrong, f"the resumed run ended with {status}"]
    found = outcome(place)
    differ = [key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)]
    return [*wrong, *(f"differs: {key}" for key in sorted(differ)), *faults(place, before=False)]


def points(place: Path, model: Path) -> tuple[list[Point], dict[str, Any]]:
    """Return the points of a run that no one kills, and its outcome."""
    prepare(place, model)
    record = place.with_suffix(".points")
    record.unlink(missing_ok=True)

    def note(point: Point, _: Path) -> None:
        with record.open("a") as file:
            file.write(json.dumps(point) + "\n")

    status = run(place, at=note)
    assert status == 0, f"the run itself ended with {status}:\n{place.with_suffix('.log').read_text()}"
    return [Point(*json.loads(line)) for line in record.read_text().splitlines()], outcome(place)


def one_of_each_kind(every: list[Point]) -> list[Point]:
    """Return the last point of each kind, in order."""
    return sorted({point.kind: point for point in every if point.kind}.values())


def main(folder: Path, which: str) -> None:
    """Try points and print a line for each: what changes there, how the run is killed, and what was wrong then."""
    import torch

    from hf_pe.cli import app

    torch.set_num_threads(1)
    model, place = folder / "model", folder / "place"
    assert forked(lambda: make_model(model)) == 0
    prepare(place, model)
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        app(
            ["plan", str(place / "tiny.yaml")]
        )  # imports all; cuts that are verified now are so in forked processes too
    gc.freeze()
    every, expected = points(place, model)
    for point in every if which == "every" else one_of_each_kind(every):
        print(json.dumps([point.label, point.how, attempt(place, model, point, expected)]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2])
