"""What a processor says of the images that it makes."""

import pytest
from transformers import (
    ConvNextImageProcessor,
    DetrImageProcessor,
    MobileNetV2ImageProcessor,
    ViTImageProcessor,
    WhisperFeatureExtractor,
)

from hf_pe.instance import processor_size


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
