"""Programs run in processes that are fresh, whoever forks them."""

import contextlib
import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from hf_pe.errors import OutOfMemoryError, ReloadError, out_of_memory
from hf_pe.fresh import run as fresh
from hf_pe.fresh.run import run_fresh

PROGRAM = """
import json, os, sys
from pathlib import Path
Path(sys.argv[1], "seen.json").write_text(json.dumps([os.getpid(), os.getppid(), "hf_pe" in sys.modules, os.environ.get("MINE")]))
if Path(sys.argv[1], "wrong").exists():
    print("the first words")
    raise ValueError("the last words")
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Runs a program; the server has imported nothing, which would take seconds."""
    text = Path(fresh.__file__).with_name(fresh.SERVER).read_text()
    server = tmp_path / "server.py"
    server.write_text(re.sub(r"(?m)^import (torch|transformers).*$", "", text))
    monkeypatch.setattr(fresh, "SERVER", str(server))
    monkeypatch.setattr(fresh, "_server", None)
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)

    def run(**variables):
        run_fresh(str(file), str(tmp_path), "it does not run", variables)
        return json.loads((tmp_path / "seen.json").read_text())

    return run


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_each_program_has_a_process_of_its_own_that_never_imported_the_package(program):
    (one, server, *facts), (other, again, *_) = program(), program()
    assert facts == [False, None]
    assert len({one, other, server, os.getpid()}) == 4 and server == again


def test_where_no_process_can_fork_each_program_is_started_by_itself(program, monkeypatch):
    monkeypatch.setattr(fresh, "_can_fork", lambda: False)
    _, parent, *facts = program(MINE="here")
    assert parent == os.getpid() and facts == [False, "here"]


@pytest.mark.parametrize("forks", [True, False])
def test_a_failure_has_the_programs_last_words(forks, program, tmp_path, monkeypatch):
    monkeypatch.setattr(fresh, "_can_fork", lambda: forks and hasattr(os, "fork"))
    (tmp_path / "wrong").touch()
    with pytest.raises(RuntimeError, match=r"(?s)it does not run:\nthe first words.*ValueError: the last words"):
        program()


def test_another_environment_is_what_the_program_has(program):
    (_, server, *_), (_, same, *_), (_, other, *_) = program(), program(MINE="there"), program(OMP_NUM_THREADS="3")
    assert server == same != other, "what libraries read when they are imported needs another server"
    assert program(MINE="there")[-1] == "there"
    assert program()[-1] is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_what_runs_ends_with_an_interruption_and_the_next_answer_is_its_own(program, tmp_path, monkeypatch):
    program()
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import os, time, sys, pathlib\npathlib.Path(sys.argv[1], 'pid').write_text(str(os.getpid()))\ntime.sleep(60)"
    )

    def interrupt():
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)  # processes of pytest-xdist ignore SIGINT

    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_fresh(str(slow), str(tmp_path), "it does not run")
    signal.signal(signal.SIGUSR1, before)
    with contextlib.suppress(psutil.NoSuchProcess):
        slept = psutil.Process(int((tmp_path / "pid").read_text()))
        while slept.status() != psutil.STATUS_ZOMBIE:  # until the test times out
            time.sleep(0.01)
    assert program()[2] is False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_program_ends_with_its_server_before_it_is_run_again(program, tmp_path):
    program()
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import os, time, sys, pathlib\npids = pathlib.Path(sys.argv[1], 'pids')\nfirst = not pids.exists()\n"
        "with pids.open('a') as file: print(os.getpid(), file=file)\nif first: time.sleep(60)"
    )

    def kill_the_server():
        while not (tmp_path / "pids").exists() or not (tmp_path / "pids").read_text():
            time.sleep(0.01)
        fresh._server.process.kill()

    threading.Thread(target=kill_the_server, daemon=True).start()
    start = time.monotonic()
    run_fresh(str(slow), str(tmp_path), "it does not run")
    first, second = map(int, (tmp_path / "pids").read_text().split())
    assert first != second and time.monotonic() - start < 30
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(first).status() != psutil.STATUS_ZOMBIE:  # until the test times out
            time.sleep(0.01)


def test_a_server_that_has_ended_is_not_missed(program, monkeypatch):
    program()
    fresh._server.process.kill()
    fresh._server.process.wait()
    assert program()[2] is False
    monkeypatch.setattr(fresh, "SERVER", "no_such_program.py")
    fresh._server.process.kill()
    fresh._server.process.wait()
    assert program()[1] == os.getpid(), "none can be started: the program is"


@pytest.mark.parametrize(
    ("status", "words", "kind"),
    [
        (-9, "", OutOfMemoryError),
        (1, "Traceback ...\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n", OutOfMemoryError),
        (1, "Traceback ...\nKeyError: 'weight'", ReloadError),
    ],
)
def test_a_process_that_lacks_memory_is_no_failed_check(status, words, kind, program, tmp_path, monkeypatch):
    def run(*_):
        (tmp_path / "log.txt").write_text(words)
        return status

    monkeypatch.setattr(fresh, "_can_fork", lambda: True)
    monkeypatch.setattr(fresh, "_by_server", run)
    with pytest.raises(RuntimeError) as failed:
        program()
    assert type(failed.value) is kind
    assert ("it does not run" in str(failed.value)) == (kind is ReloadError)
    assert (out_of_memory(failed.value) is None) == (kind is ReloadError)
