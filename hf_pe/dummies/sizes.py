"""Reads the sizes of inputs off a config or a processor."""

from typing import Any

from transformers import PretrainedConfig


def config_size(config: Any, name: str) -> Any:
    """Return the value of a field of the config, else of one of its sub-configs; None where none has it."""
    own = vars(config).get(name)
    parts = [part for part in vars(config).values() if isinstance(part, PretrainedConfig)]
    return next((v for v in (own, *(config_size(part, name) for part in parts)) if v is not None), None)


def first_value(config: Any, *names: str, default: Any = None) -> Any:
    """Return the value of the first of these fields that the config, or one of its sub-configs, has."""
    return next((v for name in names if (v := config_size(config, name)) is not None), default)


def image_size(config: PretrainedConfig) -> Any:
    """Return pixels a side, or [height, width]; None where the config does not state them (convolutional nets)."""
    return first_value(config, "image_size", "input_size")


def processor_size(processor: Any) -> int | list[int] | None:
    """Return the size to which an image processor brings every image: pixels a side, or [height, width].

    Returns:
        None where it makes no images, or leaves them different sizes (a detector's, between a shortest and a longest
        edge).
    """
    image_processor = getattr(processor, "image_processor", processor)
    timm = getattr(image_processor, "data_config", None)
    if isinstance(timm, dict) and "input_size" in timm:
        return _one_side(*timm["input_size"][-2:])
    if getattr(image_processor, "do_center_crop", None) and getattr(image_processor, "crop_size", None):
        return _side(image_processor.crop_size)
    return _side(getattr(image_processor, "size", None)) if getattr(image_processor, "do_resize", False) else None


def _side(size: Any) -> int | list[int] | None:
    """Return pixels a side, or [height, width], of a processor's size: a number or a dict of sides and edges."""
    if isinstance(size, int):
        return size
    sides = dict(size) if size is not None else {}
    if sides.get("height") and sides.get("width"):
        return _one_side(sides["height"], sides["width"])
    return sides.get("shortest_edge") if sides.get("longest_edge") is None else None


def _one_side(height: int, width: int) -> int | list[int]:
    return height if height == width else [height, width]
