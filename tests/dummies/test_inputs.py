"""Inputs that fit a model, and what a processor says of the images that it makes."""

import pytest
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    ConvNextImageProcessor,
    DetrImageProcessor,
    MobileNetV2ImageProcessor,
    ViTImageProcessor,
    WhisperFeatureExtractor,
)

from hf_pe.anatomy import discover
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import outputs_of
from hf_pe.dummies.sizes import processor_size
from hf_pe.dummies.tiny import randomize_weights_, tiny
from hf_pe.verify.equivalence import verify_cut


class Timm:
    data_config = {"input_size": [3, 160, 160]}  # noqa: RUF012


@pytest.mark.parametrize(
    ("made", "pixels"),
    [
        (lambda: ViTImageProcessor(size={"height": 32, "width": 32}), 32),
        (lambda: ViTImageProcessor(size={"height": 32, "width": 48}), [32, 48]),
        (lambda: ConvNextImageProcessor(size={"shortest_edge": 64}), 64),
        (lambda: MobileNetV2ImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 96, "width": 96}), 96),
        (lambda: DetrImageProcessor(size={"shortest_edge": 800, "longest_edge": 1333}), None),
        (lambda: ViTImageProcessor(do_resize=False), None),
        (WhisperFeatureExtractor, None),
        (Timm, 160),
        (lambda: None, None),
    ],
)
def test_images_have_the_size_that_the_processor_gives_them(made, pixels):
    assert processor_size(made()) == pixels


def test_a_tokenizer_makes_no_images(tokenizer):
    assert processor_size(tokenizer) is None


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_a_decoder_that_classifies_the_end_of_a_text_gets_texts_with_an_end(kind):
    model = randomize_weights_(
        AutoModelForSequenceClassification.from_config(
            tiny(AutoConfig.for_model(kind, num_labels=3, decoder_start_token_id=0))
        )
    )
    inputs = example_inputs(model, batch=4)
    ends = inputs["input_ids"] == model.config.eos_token_id
    assert "decoder_input_ids" not in inputs and ends.sum(1).tolist() == [1] * 4
    assert outputs_of(model, inputs)[0].shape == (4, 3)
    for name in ("hidden", "vocabulary"):
        (axis,) = discover(model.config, type(model)).named(name)
        assert verify_cut(model.config, type(model), axis).holds


@pytest.mark.parametrize("model_type", ["mobilebert", "qwen3_vl_text", "bros"])
def test_a_vocabulary_is_proved_where_the_config_has_no_end_token(model_type):
    """BROS also needs boxes, so its texts go through the second of the possible inputs."""
    config = AutoConfig.for_model(model_type)
    assert not hasattr(config.get_text_config(), "eos_token_id")
    model_class = AutoModel._model_mapping[type(config)]
    (axis,) = discover(config, model_class).named("vocabulary")
    verification = verify_cut(config, model_class, axis)
    assert verification.holds, verification.reason
