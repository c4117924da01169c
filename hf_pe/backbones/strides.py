"""Adapts the strides of compact backbones to small images."""

import math
from collections.abc import Collection
from typing import Any

from transformers import PretrainedConfig

OUTPUT_STRIDES = {"mobilenet_v2": (2, 4, 8, 16, 32), "mobilevit": (8, 16, 32), "mobilevitv2": (8, 16, 32)}
"""Output strides that stock configs can express, by model type."""
FIXED_STRIDES = {"mobilenet_v1": 32, "resnet": 32}
"""Output strides that no stock config can change, by model type."""
SMALLEST_MAP = 4
"""Pixels a side that the last feature map should keep."""


def reduce_strides_(config: PretrainedConfig, size: int, keep: Collection[str] = ()) -> list[str]:
    """Reduce strides so that the last feature map of an image keeps `SMALLEST_MAP` pixels a side.

    Args:
        config: is changed.
        size: pixels a side of the images.
        keep: fields that must not change.

    Returns:
        Notes on what was changed, or on what a stock config cannot express.
    """
    max_stride, kind = max(size // SMALLEST_MAP, 1), config.model_type
    if kind == "efficientnet":
        field, strides = "strides", list(config.strides)
        for index, stride in enumerate(strides):
            if 2 * math.prod(strides) > max_stride and stride == 2:
                strides[index] = 1
        new_value: Any = strides
    elif kind in ("convnext", "convnextv2"):
        field, later_stride = "patch_size", 2 ** (len(config.depths) - 1)
        new_value = min(config.patch_size, max(max_stride // later_stride, 1))
    elif kind in OUTPUT_STRIDES:
        field = "output_stride"
        new_value = max((s for s in OUTPUT_STRIDES[kind] if s <= max_stride), default=OUTPUT_STRIDES[kind][0])
    elif FIXED_STRIDES.get(kind, 0) > max_stride:
        return [
            f"images of {size} pixels end in a small feature map: a stock {kind} config has an output stride of "
            f"{FIXED_STRIDES[kind]} and cannot express another one"
        ]
    else:
        return []
    before = getattr(config, field)
    if field in keep or new_value in (before, list(before) if isinstance(before, tuple) else None):
        return []
    setattr(config, field, new_value)
    how = " (dilation in place of strides)" if field == "output_stride" else ""
    return [f"{field} changed from {before} to {new_value}{how} for images of {size} pixels"]
