"""Puts models that are compared on the same device."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from hf_pe.quantizers.registry import restore_layout_


@contextmanager
def on_one_device(models: Collection[PreTrainedModel]) -> Iterator[None]:
    """Move all models to one device inside the block, and back to their own devices afterwards.

    It is the accelerator if any of the models is on one: training leaves a student there, while the original may still
    be on the CPU.
    """
    devices = [model.device for model in models]
    shared = next((device for device in devices if device.type != "cpu"), None)
    moved = [(m, device) for m, device in zip(models, devices, strict=True) if shared is not None and device != shared]
    try:
        for model, _ in moved:
            _move_(model, shared)
        yield
    finally:
        for model, device in moved:
            _move_(model, device)


def _move_(model: Any, device: Any) -> None:
    restore_layout_(model)  # a quantizer may arrange weights for the device that they are on
    model.to(device)
