import itertools

import numpy as np
import pytest

from hf_pe.quantize.mix import worth_keeping


def test_the_choice_is_the_best_of_all():
    draw = np.random.default_rng(0)
    losses = {f"l{i}": float(v) for i, v in enumerate(draw.random(10))}
    costs = {name: float(draw.integers(1, 9)) for name in losses}
    for room in (0.5, 4, 11, 30, 100):
        kept = worth_keeping(losses, costs, room)
        assert sum(costs[n] for n in kept) <= room
        choices = itertools.chain(*(itertools.combinations(losses, k) for k in range(11)))
        best = max(sum(losses[n] for n in c) for c in choices if sum(costs[n] for n in c) <= room)
        assert sum(losses[n] for n in kept) == pytest.approx(best, rel=1e-3)


def test_layers_that_cost_nothing_are_not_kept():
    assert worth_keeping({"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 1.0}, 2.0) == []
