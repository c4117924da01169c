"""Faults survived: a run killed at every change of its files and then resumed; input that is broken or misleading.

`python scripts/bench/faults.py kill` takes about half an hour on one core, `inputs` a few minutes.
"""

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from common import ROOT, row, write

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


PARTS = {"kill": kill, "inputs": inputs}


if __name__ == "__main__":
    write("faults", [each for name in sys.argv[1:] or PARTS for each in PARTS[name]()])
