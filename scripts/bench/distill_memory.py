"""Peak memory of a distillation loss over a large vocabulary: in chunks, beside whole logits of both in float32.

Vocabulary 128,000, one sequence of 2,048 tokens, hidden width 576 for student and teacher, tied to nothing; KL and its
gradients of the hidden states and of the student's head. Each in a fresh process, in turns; memory counts from after
weights and hidden states are there.
"""

import argparse
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from common import row, write
from torch import nn

from hf_pe.distill.chunked import chunked
from hf_pe.distill.losses import kl
from hf_pe.fresh_process import _anonymous, _watch
from hf_pe.tasks import Head

VOCABULARY, TOKENS, WIDTH, ROUNDS, GOAL = 128_000, 2_048, 576, 3, 0.3


def once(way: str) -> None:
    """Print peak bytes, seconds and the loss of one pass."""
    torch.manual_seed(0)
    student, teacher = (nn.Linear(WIDTH, VOCABULARY, bias=False) for _ in range(2))
    teacher.requires_grad_(False)
    hidden, known = (torch.randn(TOKENS, WIDTH) for _ in range(2))
    hidden.requires_grad_(True)
    floor, peak, stop = _anonymous(), [0], threading.Event()

    watcher = threading.Thread(target=_watch, args=(peak, stop))
    watcher.start()
    start = time.perf_counter()
    if way == "plain":
        with torch.no_grad():
            target = teacher(known)
        loss = kl(student(hidden), target, 1.0).mean()
    else:
        heads = Head(student), Head(teacher)
        loss, _ = chunked(
            lambda s, t, _: kl(s, t, 1.0).sum()[None],
            [1 / TOKENS],
            (hidden, heads[0]),
            lambda place: heads[1](known[place]),
        )
    loss.backward()
    seconds = time.perf_counter() - start
    stop.set()
    watcher.join()
    print(peak[0] - floor, seconds, float(loss.detach()), float(student.weight.grad.norm()))


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--once", choices=("plain", "chunked"))
    way = arguments.parse_args().once
    if way:
        once(way)
        return
    found: dict[str, list[list[float]]] = {"plain": [], "chunked": []}
    for _ in range(ROUNDS):
        for name, values in found.items():
            command = [sys.executable, str(Path(__file__)), "--once", name]
            values.append([float(v) for v in subprocess.check_output(command, text=True).split()])
            print(name, values[-1], flush=True)
    peak, seconds = ({n: statistics.median(v[i] for v in values) for n, values in found.items()} for i in (0, 1))
    for i in (2, 3):
        one, other = (found[name][0][i] for name in found)
        assert abs(one - other) <= 1e-4 * abs(one), f"chunked is not plain: {one} and {other}"
    setting = (
        f"KL over a vocabulary of {VOCABULARY:,}, {TOKENS:,} tokens, width {WIDTH}, float32, forward and backward with "
        f"the gradient of the student's head ({VOCABULARY * WIDTH * 4 / 2**20:.0f} MB); median of {ROUNDS} fresh "
        f"processes each; whole logits of both: {peak['plain'] / 2**20:,.0f} MB, {seconds['plain']:.1f} s; in chunks "
        f"of 128 tokens: {peak['chunked'] / 2**20:,.0f} MB, {seconds['chunked']:.1f} s"
    )
    write(
        "distill_memory",
        [
            row(
                "distil.3.memory",
                peak["chunked"] / peak["plain"],
                GOAL,
                "lower",
                "of the peak of whole logits",
                setting,
            ),
            row(
                "distil.3.time",
                seconds["chunked"] / seconds["plain"],
                1.05,
                "lower",
                "of the time of whole logits",
                f"{setting}; goal: that of distil.1",
            ),
        ],
    )


if __name__ == "__main__":
    main()
