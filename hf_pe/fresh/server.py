"""Run by `fresh/run.py` as a program of its own: runs other programs, each in a process that has torch and transformers
imported already, which takes longer than most of what they do.

It reads one JSON line for each, {"program": file, "argument": text, "log": file for its output,
"environment": variables}, and answers with its
exit status. It must not import hf_pe, nor start a thread, before it forks.
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
    """Return the exit status of a program that runs in a forked process.

    That process does not hold `answers` open: they end with this one, so that whoever waits for one learns of it.
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
    """Answer line by line until the process that asks has ended."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        gc.freeze()
        for line in sys.stdin:
            print(run(answers, **json.loads(line)), file=answers, flush=True)


if __name__ == "__main__":
    main()
