"""A cache of statistics computes each value once, stays within its bound and forgets models that are gone."""

import gc
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from hf_pe.calibration.cache import StatisticsCache, StatisticsKey, nested_bytes

MOMENTS = StatisticsKey[torch.Tensor]("moments", "ffn")


@pytest.fixture
def model():
    return nn.Linear(2, 2)


def test_a_value_is_computed_once_for_each_model_and_key(model):
    cache, other, calls = StatisticsCache(1000), nn.Linear(2, 2), []

    def compute():
        calls.append(1)
        return torch.ones(len(calls))

    first = cache.get(model, MOMENTS, compute)
    assert cache.get(model, MOMENTS, compute) is first
    assert cache.get(other, MOMENTS, compute) is not first
    assert cache.get(model, StatisticsKey("moments", "heads"), compute) is not first
    assert len(calls) == 3


def test_what_was_used_longest_ago_goes_first_and_the_bound_is_kept(model):
    cache = StatisticsCache(limit=100)
    keys = [StatisticsKey[torch.Tensor]("moments", n) for n in range(3)]
    for key in keys[:2]:
        cache.get(model, key, lambda: torch.zeros(10))  # 40 bytes
    cache.get(model, keys[0], lambda: pytest.fail("it is held"))
    cache.get(model, keys[2], lambda: torch.zeros(10))
    assert cache.held_bytes == 80
    cache.get(model, keys[0], lambda: pytest.fail("it was used after the other"))
    assert cache.pop(model, keys[1]) is None


def test_the_default_bound_counts_the_limit_of_a_container(monkeypatch):
    monkeypatch.setattr("hf_pe.calibration.cache.available_memory", lambda: 1000)
    assert StatisticsCache().limit == 500


def test_a_value_larger_than_the_bound_is_handed_out_but_not_held(model):
    cache = StatisticsCache(limit=10)
    assert len(cache.get(model, MOMENTS, lambda: torch.zeros(10))) == 10
    assert len(cache) == 0


def test_values_of_a_model_go_with_it():
    cache, model = StatisticsCache(1000), nn.Linear(2, 2)
    cache.put(model, MOMENTS, torch.zeros(3))
    del model
    gc.collect()
    assert len(cache) == 0


def test_bytes_of_tensors_inside_anything_count_once():
    @dataclass
    class Pair:
        one: torch.Tensor
        several: dict[str, list[torch.Tensor]]

    shared = torch.zeros(4)
    assert nested_bytes(Pair(shared, {"a": [shared, torch.zeros(2)]})) == 16 + 8
    assert nested_bytes(nn.Linear(2, 3)) == 4 * (6 + 3)
    assert nested_bytes("text") == 0
