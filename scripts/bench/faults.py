"""Faults survived: a run killed at every change of its files and then resumed.

`python scripts/bench/faults.py kill` takes about half an hour on one core.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter

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


PARTS = {"kill": kill}


if __name__ == "__main__":
    write("faults", [each for name in sys.argv[1:] or PARTS for each in PARTS[name]()])
