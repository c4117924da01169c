"""The list of presets: what is smaller, the largest first, on images of the size asked for; the config stays."""

import pytest
from transformers import ResNetConfig, ResNetForImageClassification, Wav2Vec2Config, Wav2Vec2ForSequenceClassification

from hf_pe.backbones import PRESETS, candidates
from hf_pe.errors import UsageError


def test_smaller_presets_are_listed_and_the_config_stays_as_it_was(monkeypatch):
    few = {name: PRESETS[name] for name in ("mobilenet_v1_0.25", "mobilenet_v2_0.35", "mobilenet_v2_1.4", "bert_tiny")}
    monkeypatch.setattr("hf_pe.backbones.listing.PRESETS", few)
    config = ResNetConfig(depths=[1, 1, 1, 1], hidden_sizes=[32, 64, 128, 256], layer_type="basic")
    before = config.to_dict()
    found = candidates(config, ResNetForImageClassification, image_size=32, seconds=0.01)
    assert config.to_dict() == before
    sizes = [each.parameters for each in found]
    assert found[0].name == "" and sizes == sorted(sizes, reverse=True)
    assert {each.name for each in found[1:]} == {"mobilenet_v1_0.25", "mobilenet_v2_0.35"}
    assert all(each.flops and each.latency.p50_ms > 0 for each in found)


def test_a_model_of_sound_has_no_presets():
    with pytest.raises(UsageError, match="no preset reads input_values"):
        candidates(Wav2Vec2Config(), Wav2Vec2ForSequenceClassification)
