"""The list of presets: what is smaller, the largest first, on images of the size asked for; the config stays."""

import sys

import pytest
from transformers import ResNetConfig, ResNetForImageClassification, Wav2Vec2Config, Wav2Vec2ForSequenceClassification

from hf_pe.backbones import PRESETS, candidates
from hf_pe.errors import UsageError
from hf_pe.measure import flops, latency


def test_smaller_presets_are_listed_and_the_config_stays_as_it_was(monkeypatch):
    few = {name: PRESETS[name] for name in ("mobilenet_v1_0.25", "mobilenet_v2_0.35", "mobilenet_v2_1.4", "bert_tiny")}
    monkeypatch.setattr("hf_pe.backbones.listing.PRESETS", few)
    config = ResNetConfig(depths=[1, 1, 1, 1], hidden_sizes=[32, 64, 128, 256], layer_type="basic")
    before = config.to_dict()
    listed = candidates(config, ResNetForImageClassification, pixels=32, seconds=0.01)
    assert config.to_dict() == before
    sizes = [each.parameters for each in listed]
    assert listed[0].name == "" and sizes == sorted(sizes, reverse=True)
    assert {each.name for each in listed[1:]} == {"mobilenet_v1_0.25", "mobilenet_v2_0.35"}
    assert all(each.flops and each.latency.p50_ms > 0 for each in listed)
    assert {each.latency.inputs for each in listed} == {"batch 1, 32 pixels"}
    assert listed[0].flops == flops(config, ResNetForImageClassification, pixels=32)


def test_all_rows_see_images_of_one_size(monkeypatch):
    """Presets say 224 pixels themselves; the model that says none was measured at 128 beside them."""
    few = {name: PRESETS[name] for name in ("mobilenet_v1_0.25", "mobilenet_v2_0.35")}
    monkeypatch.setattr("hf_pe.backbones.listing.PRESETS", few)
    config = ResNetConfig(depths=[1, 1, 1, 1], hidden_sizes=[32, 64, 128, 256], layer_type="basic")
    shapes = set()

    def looking(models, **settings):
        for model in models.values():
            model.register_forward_pre_hook(
                lambda _, __, given: shapes.add(given["pixel_values"].shape), with_kwargs=True
            )
        return latency(models, **settings)

    monkeypatch.setattr("hf_pe.backbones.listing.latency", looking)
    monkeypatch.setattr(sys.modules["hf_pe.measure.latency"], "LEAST_ROUNDS", 2)
    monkeypatch.setattr(sys.modules["hf_pe.measure.latency"], "WARM_UP_MS", 0.0)
    listed = candidates(config, ResNetForImageClassification, seconds=0.01)
    assert shapes == {(1, 3, 128, 128)} and {each.latency.pixels for each in listed} == {128} and len(listed) == 3


def test_a_model_of_sound_has_no_presets():
    with pytest.raises(UsageError, match="no preset reads input_values"):
        candidates(Wav2Vec2Config(), Wav2Vec2ForSequenceClassification)
