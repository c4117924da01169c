"""Measures how long the outputs of teachers take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from hf_pe.distill.logit_source import LogitSource
from hf_pe.distill.losses.logits import Logits


class Stopwatch:
    """Adds up the seconds that pass inside its blocks, with the work of the accelerator that was begun there.

    Attributes:
        seconds: the sum so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measure the time inside the block."""
        start = _now()
        yield
        self.seconds += _now() - start


@dataclass(frozen=True)
class TimedLogits:
    """Measures the time of reading logits, which a head may compute only then.

    Attributes:
        source: of the logits.
        stopwatch: measures.
    """

    source: LogitSource
    stopwatch: Stopwatch

    def part(self, positions: slice) -> Logits:
        """Return the logits of a slice of the positions. *Shape:* (positions, classes)."""
        with self.stopwatch.running():
            return self.source.part(positions)


def _now() -> float:
    """Return the seconds of a clock, after all work of the accelerator."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
