import numpy as np
import pytest
from transformers import BertModel

from hf_pe.errors import UsageError
from hf_pe.model_spec import ModelSpec
from hf_pe.prune.sizes.allowed import candidate_sizes, resized_spec
from hf_pe.prune.sizes.budget import Budget, above_floor, crossing
from hf_pe.prune.sizes.costs import Costs
from hf_pe.prune.sizes.search import first_fitting
from hf_pe.tasks import CausalLM, Embedding
from tests.helpers import bert_config

SKETCH = ModelSpec(config=bert_config(), model_class=BertModel)


@pytest.mark.parametrize("name", ["parameters", "flops", "bytes"])
def test_shares_and_numbers_mean_the_same(name):
    costs = Costs(SKETCH)
    path = candidate_sizes(SKETCH, "ffn", 8)
    least = costs.of(name, resized_spec(SKETCH, path[-1])) / costs.of(name, SKETCH)
    share = (1 + least) / 2
    sizes = Budget(**{name: share}).within(SKETCH, path, costs)
    assert sizes == Budget(**{name: share * costs.of(name, SKETCH)}).within(SKETCH, path, costs)
    at = path.index(sizes)
    assert (
        costs.fraction(name, resized_spec(SKETCH, sizes))
        <= share
        < costs.fraction(name, resized_spec(SKETCH, path[at - 1]))
    )


def test_one_millisecond_or_all_of_the_latency_is_asked_back():
    with pytest.raises(ValueError, match=r"one millisecond or as all.*1\.01 for the first, 1\.0 for"):
        Budget(latency=1)
    assert Budget(latency=1.0).latency == 1.0 and Budget(parameters=1).parameters == 1.0


def test_all_bounds_hold_at_once():
    costs, path = Costs(SKETCH), candidate_sizes(SKETCH, "layers", 8)
    loose, tight = Budget(parameters=0.9), Budget(parameters=0.9, flops=0.55)
    assert loose.within(SKETCH, path, costs) == {"layers": 3}
    assert tight.within(SKETCH, path, costs) == {"layers": 2}


def test_a_metric_that_is_no_number_does_not_keep_the_floor():
    path = [{"ffn": size} for size in range(10, 0, -1)]
    setting, _ = above_floor(0.9, CausalLM(), 20.0, path, lambda s: 20.0 if s["ffn"] > 6 else float("nan"))
    assert setting == {"ffn": 7}


def test_noise_does_not_push_a_measured_size_to_one_side():
    """A search takes the widest that happened to fit; the line through what it saw is off by chance only."""
    path = [{"a": size} for size in range(200, 0, -1)]
    draw = np.random.default_rng(0)
    searched, fitted = [], []
    for _ in range(200):
        overruns = {}

        def fits(setting, overruns=overruns):
            overruns[path.index(setting)] = cost = setting["a"] / 120 * draw.normal(1, 0.04)
            return cost <= 1

        at = first_fitting(path, fits)
        searched.append(path[at]["a"] - 120)
        fitted.append(path[crossing(overruns, at, 199)]["a"] - 120)
    assert np.abs(fitted).mean() < 0.8 * np.abs(searched).mean()
    assert crossing({1: 1.2, 5: 0.9}, 5, 9) == 5
    assert crossing({1: 0.9, 3: 1.0, 5: 1.1}, 5, 9) == 5


def test_a_target_out_of_reach_says_what_can_be_had():
    with pytest.raises(UsageError, match=r"prune\.budget\.flops: 0\.01 cannot be reached.*the least is \d+\.\d%"):
        Budget(parameters=0.5, flops=0.01).within(SKETCH, candidate_sizes(SKETCH, "layers", 8), Costs(SKETCH))


def test_it_says_itself_in_words():
    target = Budget(parameters=0.5, latency=12)
    assert str(target) == "budget: parameters at most 50%, latency at most 12 ms"
    assert target.measured() and not Budget(bytes=1e6).measured()


@pytest.mark.parametrize(
    ("task", "metric"), [(Embedding(), lambda s: s["a"] / 100), (CausalLM(), lambda s: 100 / s["a"])]
)
def test_the_floor_is_the_last_that_keeps_enough(task, metric):
    path = [{"a": size} for size in range(100, 0, -1)]
    sizes, note = above_floor(0.8, task, 1.0, path, metric)
    assert 80 <= sizes["a"] <= 83  # one of 32 settings
    assert "floor: 80%" in note
    with pytest.raises(UsageError, match="even the smallest cut"):
        above_floor(0.99, task, 1.0, path, metric)
    assert above_floor(0.001, task, 1.0, path, metric)[0] == path[-1]


def test_a_counted_limit_holds_beside_a_measured_one(monkeypatch):
    """The line through noisy latencies may say that wider will do; parameters say exactly what will."""

    class Flat(Costs):
        def _once(self, name, spec):
            return 1.0 if name == "latency" else super()._once(name, spec)

    monkeypatch.setattr("hf_pe.prune.sizes.budget.crossing", lambda overruns, index, last: 0)
    target, costs, path = Budget(latency=1.0, parameters=0.8), Flat(SKETCH), candidate_sizes(SKETCH, "ffn", 8)
    assert target.within(SKETCH, path, costs) == Budget(parameters=0.8).within(SKETCH, path, costs)
    assert Budget(latency=1.0).within(SKETCH, path, costs) == path[0]
