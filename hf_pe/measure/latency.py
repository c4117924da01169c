"""Measures the latency of several models in one run, in alternation and after a warm-up."""

import statistics
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_pe.dummies.inputs import DUMMY_PIXELS, example_inputs, input_kind
from hf_pe.dummies.sizes import image_size
from hf_pe.measure.devices import on_one_device
from hf_pe.progress import advance
from hf_pe.report import Latency
from hf_pe.surgery import dtype_name

SECONDS = 6.0
"""Default time for one batch size, in seconds."""
LEAST_ROUNDS, LONG_MS = 5, 60_000.0
"""Fewest rounds; fewer, but at least 2, if that many take longer than `LONG_MS`."""
WARM_UP_PASSES = 3
WARM_UP_MS = 2000.0
"""The warm-up ends after `WARM_UP_PASSES` passes, or earlier if it has taken `WARM_UP_MS`."""


def latency(
    models: Mapping[str, PreTrainedModel],
    *,
    batch: int,
    length: int = 128,
    seconds: float | None = None,
    most_rounds: int = 100,
    pixels: Any = None,
) -> dict[str, Latency]:
    """Time one forward pass of each model, in alternation, so that changes of the machine's speed affect all alike.

    Args:
        models: by name; at least one.
        batch: examples per pass.
        length: tokens per example, for text models.
        seconds: time to spend without the warm-up, default `SECONDS`; see `LEAST_ROUNDS` for slow models.
        most_rounds: upper bound of the rounds.
        pixels: side, or [height, width], of images if no config has an image size.
    """
    seconds = SECONDS if seconds is None else seconds
    with on_one_device(models.values()):
        times = alternating(models, batch=batch, length=length, seconds=seconds, most_rounds=most_rounds, pixels=pixels)
        return {
            name: Latency(
                batch=batch,
                length=length if model.main_input_name == "input_ids" else None,
                threads=torch.get_num_threads(),
                device=_name_of(model.device),
                dtype=dtype_name(model.dtype),
                rounds=len(times[name]),
                p50_ms=statistics.median(times[name]),
                p90_ms=statistics.quantiles(times[name], n=10)[-1],
                pixels=pixels_of(model, shared_size(models.values(), pixels)),
            )
            for name, model in models.items()
        }


def shared_size(models: Iterable[PreTrainedModel], pixels: Any = None) -> Any:
    """Return the image size at which models are measured whose config has none.

    It is the first size that the config of another model has, else `pixels` (the processor's), else `DUMMY_PIXELS`.
    """
    return next((size for model in models if (size := image_size(model.config)) is not None), pixels or DUMMY_PIXELS)


def pixels_of(model: PreTrainedModel, shared: Any) -> int | tuple[int, int] | None:
    """Return the size of the images that a model is measured at; None if it reads no images, or reads patches.

    Args:
        model: to be measured.
        shared: see `shared_size`.
    """
    if input_kind(type(model)) != "pixel_values":
        return None
    size = image_size(model.config) or shared
    return size if isinstance(size, int) else (int(size[-2]), int(size[-1]))


def alternating(
    models: Mapping[str, PreTrainedModel],
    *,
    batch: int,
    length: int,
    seconds: float,
    most_rounds: int,
    pixels: Any = None,
) -> dict[str, list[float]]:
    """Return the milliseconds of every round by model, with all models on one device; see `latency`."""
    sizes = {"batch": batch, "length": length, "pixels": shared_size(models.values(), pixels)}
    with on_one_device(models.values()):
        inputs = {name: example_inputs(model, **sizes) for name, model in models.items()}
        return _alternating_rounds(models, inputs, batch, seconds, most_rounds)


def _alternating_rounds(
    models: Mapping[str, PreTrainedModel],
    inputs: Mapping[str, dict[str, torch.Tensor]],
    batch: int,
    seconds: float,
    most_rounds: int,
) -> dict[str, list[float]]:
    spent_ms = round_ms = 0.0
    for done in range(WARM_UP_PASSES):
        advance(f"warming up for latency at batch {batch}", done, WARM_UP_PASSES)
        round_ms = sum(_pass_ms(model, inputs[name]) for name, model in models.items())
        spent_ms += round_ms
        if spent_ms > WARM_UP_MS:
            break
    advance(f"warming up for latency at batch {batch}", WARM_UP_PASSES, WARM_UP_PASSES)
    least = min(max(int(LONG_MS / round_ms), 2), LEAST_ROUNDS)
    rounds = min(max(round(seconds * 1000 / round_ms), least), most_rounds)
    times: dict[str, list[float]] = {name: [] for name in models}
    for done in range(rounds):
        advance(f"latency at batch {batch}", done, rounds)
        for name, model in models.items():
            times[name].append(_pass_ms(model, inputs[name]))
    advance(f"latency at batch {batch}", rounds, rounds)
    return times


def _pass_ms(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> float:
    _wait_for(model.device)
    start = time.perf_counter()
    with torch.inference_mode():
        model(**inputs)
    _wait_for(model.device)
    return (time.perf_counter() - start) * 1000


def _wait_for(device: torch.device) -> None:
    """Wait until an accelerator has finished; operations of a CPU are not asynchronous."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _name_of(device: torch.device) -> str:
    """Return the type of a device, with its name if it has one."""
    name_of = getattr(torch.get_device_module(device), "get_device_name", None)
    return device.type if device.type == "cpu" or name_of is None else f"{device.type} ({name_of(device)})"
