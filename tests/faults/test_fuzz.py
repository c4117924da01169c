"""Broken inputs end in a message with the way out, and change no file of the user's.

A sample; `scripts/bench/faults.py fuzz` tries 300.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.breaking import ANY, JSON, TARGETS, broken_inputs

PROGRAM = Path(__file__).with_name("fuzzing.py")
COUNT, STEP = 300, 10


def test_broken_inputs_are_the_same_for_a_seed_and_of_every_kind():
    inputs, again = broken_inputs(COUNT), broken_inputs(COUNT)
    assert [each[:4] for each in inputs] == [each[:4] for each in again]
    assert len({(each.kind, each.label) for each in inputs}) == COUNT
    assert {each.kind for each in inputs} == {target[0] for target in TARGETS}


@pytest.mark.parametrize("label", [*ANY, *JSON])
def test_a_damage_changes_the_file(label):
    whole = b'{"model_type": "bert", "hidden_size": 8, "note": "more"}'
    assert (ANY | JSON)[label](whole, random.Random(0)) != whole


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_sample_of_broken_inputs_ends_in_messages(tmp_path):
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    path = os.pathsep.join([str(PROGRAM.parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(PROGRAM), str(tmp_path / "tried"), str(COUNT), str(STEP)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    tried = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(tried) == COUNT // STEP
    assert [each for each in tried if each[4] not in ("refused", "passed")] == []
    assert sum(each[4] == "refused" for each in tried) > COUNT // STEP // 2
