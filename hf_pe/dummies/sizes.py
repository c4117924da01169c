"""Sizes of inputs as a config or a processor states them."""

from typing import Any

from transformers import PretrainedConfig


def config_size(config: Any, name: str) -> Any:
    """A value of the config, else of one of its parts; None where there is none."""
    own = vars(config).get(name)
    parts = [part for part in vars(config).values() if isinstance(part, PretrainedConfig)]
    return next((v for v in (own, *(config_size(part, name) for part in parts)) if v is not None), None)


def first_value(config: Any, *names: str, default: Any = None) -> Any:
    """The first of these values that the config knows."""
    return next((v for name in names if (v := config_size(config, name)) is not None), default)


def image_size(config: PretrainedConfig) -> Any:
    """Pixels a side, or [height, width], where the config says it: those of plain convolutional nets need not."""
    return first_value(config, "image_size", "input_size")


def processor_size(processor: Any) -> int | list[int] | None:
    """Return the size that an image processor gives every image: pixels a side, or [height, width].

    None where it makes no images, or leaves them different sizes (a detector's, between a shortest and a longest edge).
    """
    maker = getattr(processor, "image_processor", processor)
    timm = getattr(maker, "data_config", None)
    if isinstance(timm, dict) and "input_size" in timm:
        return _one_side(*timm["input_size"][-2:])
    if getattr(maker, "do_center_crop", None) and getattr(maker, "crop_size", None):
        return _side(maker.crop_size)
    return _side(getattr(maker, "size", None)) if getattr(maker, "do_resize", False) else None


def _side(size: Any) -> int | list[int] | None:
    """Return what a processor's size says, which is a number of pixels or a dict of heights, widths and edges."""
    if isinstance(size, int):
        return size
    told = dict(size) if size is not None else {}
    if told.get("height") and told.get("width"):
        return _one_side(told["height"], told["width"])
    return told.get("shortest_edge") if told.get("longest_edge") is None else None


def _one_side(height: int, width: int) -> int | list[int]:
    return height if height == width else [height, width]
