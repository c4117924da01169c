import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertModel, LlamaForCausalLM, ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from hf_pe.checkpoints.source import resolve
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import UsageError
from hf_pe.measure import flops, latency, measure, parameters, quality, spec_sizes, weight_bytes
from hf_pe.model_spec import ModelSpec
from hf_pe.progress import listen
from hf_pe.run.measure_model import measure_source
from hf_pe.tasks import EvalResult, ImageClassification
from tests.helpers import bert_config
from tests.images import of_rows


def test_parameters_with_and_without_embeddings():
    model = BertModel(bert_config())
    counted = parameters(model)
    tables = (200 + 64 + 2) * 64
    assert counted.total == model.num_parameters()
    assert counted.without_embeddings == counted.total - tables


def test_a_tied_table_counts_once(llama_folder):
    model = LlamaForCausalLM.from_pretrained(llama_folder)
    assert parameters(model).total == model.num_parameters()
    assert parameters(model).without_embeddings == model.num_parameters() - 200 * 64


def test_a_spec_has_the_sizes_of_the_model():
    model = BertModel(bert_config())
    sizes = spec_sizes(ModelSpec(config=model.config, model_class=BertModel))
    assert sizes["parameters"] == model.num_parameters()
    assert sizes["weight_bytes"] == model.num_parameters() * 4 == weight_bytes(model)
    half = bert_config(dtype="bfloat16")
    assert spec_sizes(ModelSpec(config=half, model_class=BertModel))["weight_bytes"] == model.num_parameters() * 2


def test_latency_is_interleaved_and_stated_with_its_setting():
    turns = []
    models = {name: randomize_weights_(BertModel(bert_config())) for name in ("one", "two")}
    for name, model in models.items():
        model.register_forward_hook(lambda *_, name=name: turns.append(name))
    timed = latency(models, batch=2, length=16, seconds=0.01)
    assert turns[-6:] == ["one", "two"] * 3
    assert timed["one"].rounds >= 5
    assert (timed["one"].batch, timed["one"].length, timed["one"].threads) == (2, 16, torch.get_num_threads())
    assert (timed["one"].device, timed["one"].dtype) == ("cpu", "float32")
    assert 0 < timed["one"].p50_ms <= timed["one"].p90_ms
    assert timed["one"].throughput == pytest.approx(2000 / timed["one"].p50_ms)


def test_warming_up_is_said_before_the_first_pass():
    model, said = randomize_weights_(BertModel(bert_config())), []
    model.register_forward_hook(lambda *_: said.append("pass"))
    with listen(lambda what, done, total: said.append((what, done, total))):
        latency({"one": model}, batch=2, length=8, seconds=0.0)
    assert said[0] == ("warming up for latency at batch 2", 0, 3) and said[1] == "pass"


def test_large_models_are_run_twice_only(monkeypatch):
    monkeypatch.setattr(sys.modules["hf_pe.measure.latency"], "LONG_MS", 0.0)
    timed = latency({"one": randomize_weights_(BertModel(bert_config()))}, batch=1, length=8, seconds=0.0)
    assert timed["one"].rounds == 2 and timed["one"].p50_ms <= timed["one"].p90_ms


def test_a_longer_model_takes_longer():
    short, long = (randomize_weights_(BertModel(bert_config(hidden_size=128, num_hidden_layers=n))) for n in (1, 12))
    timed = latency({"short": short, "long": long}, batch=4, length=64, seconds=0.5)
    assert timed["long"].p50_ms > 2 * timed["short"].p50_ms


def test_measure_all_at_once():
    measured = measure(
        {"a": randomize_weights_(BertModel(bert_config()))}, evaluate=lambda model: {"mine": 3}, batches=(1,)
    )["a"]
    assert measured.quality == {"mine": 3.0}
    assert measured.flops_setting == "batch 1, length 64"
    assert measured.disk_bytes is None
    assert measured.peak_memory_bytes is None


RESNET = {"hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "embedding_size": 8, "num_labels": 3}


@pytest.fixture
def timed_at(monkeypatch):
    """The sizes of images that latency is asked for, in place of times."""
    sizes = []

    def alternating(models, **options):
        sizes.append(options["pixels"])
        return {name: [1.0, 1.0] for name in models}

    monkeypatch.setattr(sys.modules["hf_pe.measure.latency"], "alternating", alternating)
    return sizes


def test_images_without_a_size_in_the_config_have_the_processors(timed_at):
    """A ResNet for 32 pixels was counted and timed at 128, or at what the model beside it says."""
    models = {"a": randomize_weights_(ResNetForImageClassification(ResNetConfig(**RESNET)))}
    data = replace(of_rows(ImageClassification(), {"pixel_values": [[0.0]]}), processor=ViTImageProcessor(size=32))
    measured = measure(models, data, evaluations={"a": EvalResult({"x": np.zeros(1)}, lambda _: {})}, batches=(1,))["a"]
    assert measured.flops == flops(models["a"].config, ResNetForImageClassification, pixels=32)
    assert measured.flops_setting == measured.latency[0].inputs == "batch 1, 32 pixels"
    plain = measure(models, batches=(1,))["a"]
    assert plain.flops_setting == plain.latency[0].inputs == "batch 1, 128 pixels"
    wide = measure(models, batches=(1,), pixels=[32, 48])["a"]
    assert wide.flops_setting == wide.latency[0].inputs == "batch 1, 32 x 48 pixels"
    assert wide.latency[0].pixels == (32, 48) and type(wide).model_validate_json(wide.model_dump_json()) == wide
    assert timed_at == [32, 128, [32, 48]]


def test_a_pass_is_timed_on_images_of_the_size_that_is_stated():
    model, shapes = randomize_weights_(ResNetForImageClassification(ResNetConfig(**RESNET))), set()
    model.register_forward_pre_hook(lambda _, __, given: shapes.add(given["pixel_values"].shape), with_kwargs=True)
    timed = latency({"a": model}, batch=2, seconds=0.0, pixels=32)["a"]
    assert shapes == {(2, 3, 32, 32)} and timed.inputs == "batch 2, 32 pixels"


def test_a_source_is_measured_at_the_size_of_its_processor(tmp_path, monkeypatch, timed_at):
    reopened = []
    monkeypatch.setattr(
        "hf_pe.run.measure_model.with_folder_facts", lambda measured, *rest: reopened.append(rest[-1]) or measured
    )
    config = ResNetConfig(**RESNET, id2label={i: str(i) for i in range(3)})
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 48, "width": 48}).save_pretrained(tmp_path)
    measured = measure_source(resolve(str(tmp_path)), None, None)
    assert measured.flops_setting == "batch 1, 48 pixels" and {each.pixels for each in measured.latency} == {48}
    assert measured.flops == flops(config, ResNetForImageClassification, pixels=48)
    assert reopened == [48] and {*timed_at} == {48}


def test_a_users_evaluate_must_give_numbers():
    with pytest.raises(UsageError, match="expected a dict of numbers, got 'good'"):
        quality(BertModel(bert_config()), None, lambda model: "good")


def test_quality_without_data_is_not_measured():
    assert quality(BertModel(bert_config()), None) == {}
