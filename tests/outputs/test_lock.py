import json
import os
import platform
import subprocess
import sys
import time

import psutil
import pytest

from hf_pe.errors import UsageError
from hf_pe.outputs import lock as module
from hf_pe.outputs.lock import is_locked, locked


def holder(pid=1, **changes):
    started = psutil.Process(pid).create_time() if psutil.pid_exists(pid) else 0
    return json.dumps({"pid": pid, "host": platform.node(), "started": started, **changes})


def test_a_living_process_is_named_and_refuses_the_second(tmp_path):
    file = tmp_path / "lock"
    file.write_text(holder())
    assert is_locked(file)
    message = rf"Output out is in use by process 1 on {platform.node()}\. Wait"
    with pytest.raises(UsageError, match=message), locked(file, "Output out"):
        pass
    assert file.read_text() == holder()


def test_another_host_cannot_be_seen_from_here(tmp_path):
    file = tmp_path / "lock"
    file.write_text(holder(host="elsewhere"))
    message = f"on elsewhere. If it has ended, remove {file}"
    with pytest.raises(UsageError, match=message), locked(file, "Output out"):
        pass


@pytest.mark.parametrize("stale", [holder(pid=2**22 + 1), holder(started=0), "", "{", "[]"])
def test_a_stale_lock_is_taken_over(tmp_path, monkeypatch, stale):
    """Its process is gone, its number belongs to another process by now, or it was killed while writing it."""
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)
    file = tmp_path / "lock"
    file.write_text(stale)
    assert not is_locked(file)
    with locked(file, "Output out"):
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_that_no_one_has_waited_for_holds_nothing(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    file = tmp_path / "lock"
    file.write_text(holder(pid=process.pid))
    with locked(file, "Output out"):
        pass
    process.wait()


def test_the_process_that_holds_it_passes(tmp_path):
    file = tmp_path / "a" / "lock"
    with locked(file, "Output out"):
        with locked(file, "Output out"):
            pass
        assert file.is_file()
        assert not is_locked(file)
    assert list(tmp_path.iterdir()) == []
