"""Latency: models side by side in one run, interleaved, after warm-up."""

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
"""Time that one batch size is measured for where nothing else is asked for."""
LEAST_ROUNDS, LONG_MS = 5, 60_000.0
"""Rounds at least; 2 are enough where so many take longer than that."""
WARM_UP_PASSES = 3
WARM_UP_MS = 2000.0
"""Warm-up ends after so many passes, or sooner once it took this long."""


def latency(
    models: Mapping[str, PreTrainedModel],
    *,
    batch: int,
    length: int = 128,
    seconds: float | None = None,
    most_rounds: int = 100,
    pixels: Any = None,
) -> dict[str, Latency]:
    """Time one forward pass of each model, taking turns so that all see the same machine and images of the same size.

    Args:
        models: by name; at least one.
        batch: examples per pass.
        length: tokens, for text models.
        seconds: time to spend, warm-up aside, default `SECONDS`; never fewer than `LEAST_ROUNDS`, or 2 of large models.
        most_rounds: upper bound of the rounds.
        pixels: a side, or [height, width], of images where no config says a size.
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
    """The image size that configs which say none are measured at: the first that one beside them says, else `pixels`
    (their processor's), else `DUMMY_PIXELS`."""
    return next((size for model in models if (size := image_size(model.config)) is not None), pixels or DUMMY_PIXELS)


def pixels_of(model: PreTrainedModel, shared: Any) -> int | tuple[int, int] | None:
    """Return the size of the images that a model is measured at; None where it reads none, or reads patches.

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
    """Milliseconds of every round by model, all on one device; see `latency`."""
    told = {"batch": batch, "length": length, "pixels": shared_size(models.values(), pixels)}
    with on_one_device(models.values()):
        inputs = {name: example_inputs(model, **told) for name, model in models.items()}
        return _taking_turns(models, inputs, batch, seconds, most_rounds)


def _taking_turns(
    models: Mapping[str, PreTrainedModel],
    inputs: Mapping[str, dict[str, torch.Tensor]],
    batch: int,
    seconds: float,
    most_rounds: int,
) -> dict[str, list[float]]:
    spent = each = 0.0
    for done in range(WARM_UP_PASSES):
        advance(f"warming up for latency at batch {batch}", done, WARM_UP_PASSES)
        each = sum(_once(model, inputs[name]) for name, model in models.items())
        spent += each
        if spent > WARM_UP_MS:
            break
    advance(f"warming up for latency at batch {batch}", WARM_UP_PASSES, WARM_UP_PASSES)
    least = min(max(int(LONG_MS / each), 2), LEAST_ROUNDS)
    rounds = min(max(round(seconds * 1000 / each), least), most_rounds)
    times: dict[str, list[float]] = {name: [] for name in models}
    for done in range(rounds):
        advance(f"latency at batch {batch}", done, rounds)
        for name, model in models.items():
            times[name].append(_once(model, inputs[name]))
    advance(f"latency at batch {batch}", rounds, rounds)
    return times


def _once(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> float:
    _wait_for(model.device)
    start = time.perf_counter()
    with torch.inference_mode():
        model(**inputs)
    _wait_for(model.device)
    return (time.perf_counter() - start) * 1000


def _wait_for(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given; a CPU has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _name_of(device: torch.device) -> str:
    """The kind of device, and its name where it has one."""
    name_of = getattr(torch.get_device_module(device), "get_device_name", None)
    return device.type if device.type == "cpu" or name_of is None else f"{device.type} ({name_of(device)})"
