"""Run other programs, each in a forked process that has torch and transformers imported already.

`fresh/run.py` starts this file as a program of its own, since these imports take longer than most of the programs. For
each program it reads one JSON line, {"program": file, "argument": text, "log": file for its output, "environment":
variables}, and answers with the exit status. It must neither import hf_pe nor start a thread before it forks.
"""

import gc
import json
import os
import runpy
import sys
import traceback
from typing import TextIO

import torch  # noqa: F401
import transformers.modeling_utils
import transformers.models.auto.modeling_auto  # noqa: F401


def run(answers: TextIO, program: str, argument: str, log: str, environment: dict[str, str]) -> int:
    """Run a program in a forked process and return its exit status.

    The forked process closes `answers`, so that a reader sees the end of the stream when this server ends.
    """
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    status = 1
    try:
        os.close(answers.fileno())
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = [program, argument]
        runpy.run_path(program, run_name="__main__")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Answer line by line until the process at the other end of the pipe closes it."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # output of libraries must not be read as an answer
        gc.freeze()
        for line in sys.stdin:
            print(run(answers, **json.loads(line)), file=answers, flush=True)


if __name__ == "__main__":
    main()
