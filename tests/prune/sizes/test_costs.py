import pytest
from transformers import BertModel, T5Config, T5ForConditionalGeneration

from hf_pe.measure import flops, parameters, weight_bytes
from hf_pe.model_spec import ModelSpec
from hf_pe.prune.sizes.allowed import resized_spec
from hf_pe.prune.sizes.costs import Costs, _blocks
from tests.helpers import bert_config

DEEP = ModelSpec(config=bert_config(num_hidden_layers=12), model_class=BertModel)


def test_counted_costs_are_those_of_the_real_model():
    costs = Costs(DEEP)
    model = BertModel(DEEP.config)
    assert costs.of("parameters", DEEP) == parameters(model).without_embeddings
    assert costs.of("bytes", DEEP) == weight_bytes(model)
    assert costs.of("flops", DEEP) == flops(DEEP.config, BertModel, length=64)  # all its positions
    half = resized_spec(DEEP, {"layers": 6})
    assert costs.fraction("parameters", half) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("towers", [1, 2])
def test_a_deep_model_is_the_sum_of_its_blocks(towers):
    """What is linear in the layers comes out exactly: parameters."""
    config = T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=9, num_decoder_layers=15, num_heads=4, vocab_size=99)
    spec = DEEP if towers == 1 else ModelSpec(config=config, model_class=T5ForConditionalGeneration)
    parts = _blocks(spec)
    assert len(parts) == 1 + towers
    costs = Costs(spec)
    assert sum(times * costs.of("parameters", part) for times, part in parts) == costs.of("parameters", spec)
    shallow = resized_spec(DEEP, {"layers": 8})
    assert [(times, part.config.num_hidden_layers) for times, part in _blocks(shallow)] == [(1, 8)]


def test_latency_is_measured_once_and_beside_the_dense_model(monkeypatch):
    monkeypatch.setattr("hf_pe.prune.sizes.costs.SECONDS", 0.5)
    spec = ModelSpec(config=bert_config(), model_class=BertModel)
    costs = Costs(spec)
    here = costs.of("latency", spec)
    assert here > 0 and costs.of("latency", spec) == here
    other = resized_spec(spec, {"layers": 1})
    assert costs.fraction("latency", other) == costs.of("latency", other) / here


def test_memory_is_what_a_fresh_process_takes():
    big = ModelSpec(config=bert_config(vocab_size=200_000, hidden_size=128), model_class=BertModel)
    peak = Costs(big).of("memory", big)
    assert peak > 0.5 * 200_000 * 128 * 4
