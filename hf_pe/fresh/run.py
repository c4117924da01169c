"""Run programs of this package in processes that have never imported hf_pe, to check that folders load without it.

Where a process can fork and there is no accelerator, one server imports the libraries once and forks for each program;
elsewhere each program is started by itself.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from hf_pe.errors import OutOfMemoryError, ReloadError, out_of_memory

SERVER = "server.py"
READ_AT_IMPORT = ("CUDA_", "HF_", "LD_", "MKL_", "OMP_", "PYTHON", "PYTORCH_", "TORCH", "TRANSFORMERS_")
"""Prefixes of the environment variables that libraries read only while they are imported."""


class _Server:
    """Control a server process that runs programs for this process.

    Attributes:
        owner: Id of the process that started the server; a fork of that process starts its own server.
        environment: Environment that the server was started in.
        process: The server process.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self.owner, self.environment = os.getpid(), environment
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).parent / SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            start_new_session=True,  # so that `end` can kill it with its program, and Ctrl-C does not reach it
        )

    def run(self, **order: Any) -> int | None:
        """Run a program and return its exit status, see `server.run`; None where the server itself has ended.

        In that case the program has been ended too, so that another process can run it from the beginning.
        """
        questions, answers = _pipes(self.process)
        try:
            print(json.dumps(order), file=questions, flush=True)
            answer = answers.readline()
        except (BrokenPipeError, ValueError):
            answer = ""
        except BaseException:  # such as Ctrl-C: a late answer would be read as the answer to the next program
            self.end()
            raise
        if not answer:
            self.end()
        return int(answer) if answer else None

    def serves(self, environment: dict[str, str]) -> bool:
        """Return whether the server can run a program of this process in that environment."""
        same = _read_at_import(self.environment) == _read_at_import(environment)
        return same and self.owner == os.getpid() and self.process.poll() is None

    def end(self) -> None:
        """Kill the server and the program that it runs, unless another process owns it or it was waited for."""
        if (
            self.owner != os.getpid() or self.process.returncode is not None
        ):  # then its id may belong to another process
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


_server: _Server | None = None
_one_at_a_time = threading.Lock()


def run_fresh(program: str, argument: str, failure: str, variables: Mapping[str, str] | None = None) -> None:
    """Run a program of this package, offline and in a process that has never imported hf_pe.

    Args:
        program: Name of a file beside this one.
        argument: Folder that the program reads and writes; its output goes into "log.txt" in this folder.
        failure: Beginning of the message where the program fails.
        variables: Environment variables in addition to those of this process.

    Raises:
        OutOfMemoryError: The program did not have enough memory.
        ReloadError: The program failed; the message has `failure` and the end of the program's output.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **(variables or {})}
    file, log = str(Path(__file__).parent / program), Path(argument, "log.txt")
    status = _by_server(file, argument, str(log), environment) if _can_fork() else None
    if status is None:
        with log.open("w") as output:
            status = subprocess.run(
                [sys.executable, "-P", file, argument], stdout=output, stderr=output, env=environment
            ).returncode
    if status:
        raise _failure(status, failure, log.read_text("utf-8", "replace")[-2000:])


def _failure(status: int, failure: str, output: str) -> RuntimeError:
    """Return the error for a program that ended with `status`; lack of memory says nothing about the folder."""
    error = ReloadError(f"{failure}:\n{output}")
    if status == -signal.SIGKILL:
        return OutOfMemoryError("the system killed the process that loads the result, most likely for lack of memory")
    return error if out_of_memory(error) is None else OutOfMemoryError(output.strip().splitlines()[-1])


def _can_fork() -> bool:
    """Return whether a forked process can compute, which it cannot once a library has opened an accelerator."""
    return hasattr(os, "fork") and sys.platform != "darwin" and not torch.accelerator.is_available()


def _by_server(program: str, argument: str, log: str, environment: dict[str, str]) -> int | None:
    global _server
    with _one_at_a_time:
        if _server is None or not _server.serves(environment):
            if _server is not None:
                _server.end()
            _server = _Server(environment)
            atexit.register(_server.end)
        return _server.run(program=program, argument=argument, log=log, environment=environment)


def _read_at_import(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_IMPORT)}


def _pipes(process: "subprocess.Popen[str]") -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout
