"""Models that are compared run on one device."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from hf_pe.quantizers.registry import restore_layout_


@contextmanager
def on_one_device(models: Collection[PreTrainedModel]) -> Iterator[None]:
    """Hold all models on one device inside the block: on the accelerator where any of them lies on one.

    Training leaves a student on the accelerator while the original may still lie in the memory of the CPU. Afterwards
    each is back where it was.
    """
    places = [model.device for model in models]
    shared = next((place for place in places if place.type != "cpu"), None)
    moved = [(m, place) for m, place in zip(models, places, strict=True) if shared is not None and place != shared]
    try:
        for model, _ in moved:
            _move_(model, shared)
        yield
    finally:
        for model, place in moved:
            _move_(model, place)


def _move_(model: Any, place: Any) -> None:
    restore_layout_(model)  # a quantizer may lay weights out for the device that they are on
    model.to(place)
