import sys

import pytest
import torch
from transformers import BertModel, LlamaForCausalLM

from hf_pe.errors import UsageError
from hf_pe.instance import lively
from hf_pe.measure import latency, measure, parameters, quality, sketch_size, weight_bytes
from hf_pe.plans import Sketch
from tests.helpers import bert_config


def test_parameters_with_and_without_embeddings():
    model = BertModel(bert_config())
    found = parameters(model)
    tables = (200 + 64 + 2) * 64
    assert found.total == model.num_parameters()
    assert found.without_embeddings == found.total - tables


def test_a_tied_table_counts_once(llama_folder):
    model = LlamaForCausalLM.from_pretrained(llama_folder)
    assert parameters(model).total == model.num_parameters()
    assert parameters(model).without_embeddings == model.num_parameters() - 200 * 64


def test_a_sketch_has_the_sizes_of_the_model():
    model = BertModel(bert_config())
    found = sketch_size(Sketch(config=model.config, model_class=BertModel))
    assert found["parameters"] == model.num_parameters()
    assert found["weight_bytes"] == model.num_parameters() * 4 == weight_bytes(model)
    half = bert_config(dtype="bfloat16")
    assert sketch_size(Sketch(config=half, model_class=BertModel))["weight_bytes"] == model.num_parameters() * 2


def test_latency_is_interleaved_and_stated_with_its_setting():
    turns = []
    models = {name: lively(BertModel(bert_config())) for name in ("one", "two")}
    for name, model in models.items():
        model.register_forward_hook(lambda *_, name=name: turns.append(name))
    found = latency(models, batch=2, length=16, seconds=0.01)
    assert turns[-6:] == ["one", "two"] * 3
    assert found["one"].rounds >= 5
    assert (found["one"].batch, found["one"].length, found["one"].threads) == (2, 16, torch.get_num_threads())
    assert 0 < found["one"].p50_ms <= found["one"].p90_ms
    assert found["one"].throughput == pytest.approx(2000 / found["one"].p50_ms)


def test_large_models_are_run_twice_only(monkeypatch):
    monkeypatch.setattr(sys.modules["hf_pe.measure.latency"], "LONG_MS", 0.0)
    found = latency({"one": lively(BertModel(bert_config()))}, batch=1, length=8, seconds=0.0)
    assert found["one"].rounds == 2 and found["one"].p50_ms <= found["one"].p90_ms


def test_a_longer_model_takes_longer():
    short, long = (lively(BertModel(bert_config(hidden_size=128, num_hidden_layers=n))) for n in (1, 12))
    found = latency({"short": short, "long": long}, batch=4, length=64, seconds=0.5)
    assert found["long"].p50_ms > 2 * found["short"].p50_ms


def test_measure_all_at_once():
    found = measure({"a": lively(BertModel(bert_config()))}, evaluate=lambda model: {"mine": 3}, batches=(1,))["a"]
    assert found.quality == {"mine": 3.0}
    assert found.flops_setting == "batch 1, length 64"
    assert found.disk_bytes is None
    assert found.peak_memory_bytes is None


def test_a_users_evaluate_must_give_numbers():
    with pytest.raises(UsageError, match="expected a dict of numbers, got 'good'"):
        quality(BertModel(bert_config()), None, lambda model: "good")


def test_quality_without_data_is_not_measured():
    assert quality(BertModel(bert_config()), None) == {}
