"""FLOPs of one forward pass, counted where every product is visible to the counter.

torch's counter sees nothing inside CPU scaled-dot-product attention and grouped expert products, so the count runs with
eager attention and eager experts, on a fake model that takes no memory where the architecture allows it.
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
"""Parameters up to which a model is built for real where a fake one cannot run."""


def flops(
    config: PretrainedConfig,
    model_class: type[PreTrainedModel],
    *,
    batch: int = 1,
    length: int = 128,
    pixels: Any = None,
) -> int | None:
    """Count the FLOPs of one forward pass (a multiply-add is 2) from the config; None where it cannot be done.

    Args:
        config: of the model; quantization is ignored (the products are the same).
        model_class: what to build.
        batch: examples.
        length: tokens, for text models.
        pixels: a side, or [height, width], where the config does not say.
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
