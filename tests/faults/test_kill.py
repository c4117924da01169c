"""A run that is killed at any change of its files, and then resumed, ends as one that no one killed.

One point of each kind; `scripts/bench/faults.py` tries all of them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("killing.py")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_killed_run_that_is_resumed_ends_as_one_that_was_not(tmp_path):
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, str(PROGRAM), str(tmp_path), "kinds"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings})
    assert done.returncode == 0, done.stderr
    tried = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each for each in tried if each[2]] == []
    labels = "\n".join(f"{how} {label}" for label, how, _ in tried)
    for kind in (
        "before rename .out.hf_pe-#/new -> .out.hf_pe-#/whole",
        "before rename out -> .out.hf_pe-#/old",
        "before rename .out.hf_pe-#/whole -> out",
        "half save .out.hf_pe-#/new/",
        "half save .out.hf_pe-#/2-distil-#.training/checkpoint-",
        "torn open .out.hf_pe-#/hf_pe_work.json",
        "torn open .out.hf_pe-#/new/.hf_pe.json",
        "before remove .out.hf_pe-#/hf_pe_work.json",
        "before remove .out.hf_pe.lock",
    ):
        assert kind in labels
    assert len(tried) <= 25
