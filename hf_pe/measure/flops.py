"""Counts the FLOPs of one forward pass.

torch's counter does not count CPU scaled-dot-product attention and grouped expert products. The count therefore uses
eager attention and eager experts, on a fake model that takes no memory if the architecture allows it.
"""

import copy
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.anatomy import built, custom_modules_of, with_custom_modules
from hf_pe.dummies.inputs import example_inputs

LARGEST_REAL = 2_000_000_000
"""Most parameters of a model that is built with real weights because it cannot run as a fake model."""


def flops(
    config: PretrainedConfig,
    model_class: type[PreTrainedModel],
    *,
    batch: int = 1,
    length: int = 128,
    pixels: Any = None,
) -> int | None:
    """Count the FLOPs of one forward pass from the config; a multiply-add counts as 2.

    Args:
        config: of the model; quantization is ignored, as the products are the same.
        model_class: class of the model.
        batch: number of examples.
        length: tokens per example, for text models.
        pixels: side, or [height, width], of images if the config has no image size.

    Returns:
        The FLOPs; None for a model with data-dependent shapes that is too large to be built.
    """
    custom = custom_modules_of(config)
    plain = copy.deepcopy(config) if custom is None else with_custom_modules(config, custom)
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    plain._attn_implementation = "eager"
    plain._experts_implementation = "eager"
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return _count(plain, model_class, batch, length, pixels)
    except (DataDependentOutputException, DynamicOutputShapeException):
        with torch.device("meta"):
            size = sum(p.numel() for p in built(plain, model_class).parameters())
        return _count(plain, model_class, batch, length, pixels) if size <= LARGEST_REAL else None


def _count(config: PretrainedConfig, model_class: type[PreTrainedModel], batch: int, length: int, pixels: Any) -> int:
    model: Any = built(config, model_class).eval()
    inputs = example_inputs(model, batch=batch, length=length, pixels=pixels)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    return int(counter.get_total_flops())
