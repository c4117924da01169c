"""The share of the teachers' time has what their heads compute later."""

import itertools
from types import SimpleNamespace

import torch

from hf_pe.distill.logit_source import ChunkedLogits
from hf_pe.distill.stopwatch import Stopwatch, TimedLogits


def test_blocks_and_chunks_of_logits_are_added_up(monkeypatch):
    seconds = itertools.count(0.0)
    monkeypatch.setattr("hf_pe.distill.stopwatch.time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    stopwatch = Stopwatch()
    with stopwatch.running():
        pass
    assert stopwatch.seconds == 1
    logits = TimedLogits(ChunkedLogits(torch.eye(3), lambda states: 2 * states), stopwatch)
    assert torch.equal(logits.part(slice(1, 3)), 2 * torch.eye(3)[1:])
    assert stopwatch.seconds == 2
