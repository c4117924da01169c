"""Lists compact backbones that fit under a model's head, with parameters, FLOPs and measured latency."""

import copy
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.backbones.presets import PRESETS
from hf_pe.backbones.resolve import SwapSpec, resolve_swap
from hf_pe.dummies.inputs import DUMMY_PIXELS
from hf_pe.dummies.sizes import image_size
from hf_pe.errors import UsageError
from hf_pe.measure import flops, latency, parameters
from hf_pe.report import Latency


@dataclass(frozen=True)
class Candidate:
    """Hold one row of the list.

    Attributes:
        name: of the preset; "" for the model itself.
        parameters: number of all parameters.
        flops: of one example; None where they cannot be counted.
        latency: of one batch, measured with random weights, which do not change it.
        notes: what was adapted to the model.
    """

    name: str
    parameters: int
    flops: int | None
    latency: Latency
    notes: tuple[str, ...]


def candidates(
    config: PretrainedConfig,
    model_class: type[PreTrainedModel],
    *,
    pixels: Any = None,
    batch: int = 1,
    length: int = 128,
    seconds: float = 0.5,
) -> list[Candidate]:
    """Return the model itself and the presets that are smaller and fit under its head, the largest first.

    Args:
        config: of the model.
        model_class: of the model, whose head is kept.
        pixels: a side, or [height, width], of the images that all of them read; default: the config's size, else
            `DUMMY_PIXELS`.
        batch: examples in a timed forward pass.
        length: tokens of each text.
        seconds: for which each model is timed; all take turns.

    Raises:
        UsageError: no preset reads what the model reads, or none fits under its head.
    """
    fitting = [name for name, preset in PRESETS.items() if preset.kind == model_class.main_input_name]
    if not fitting:
        raise UsageError(
            f"swap: no preset reads {model_class.main_input_name}. Make the model's own architecture smaller by "
            "`config` values, or name a folder or a Hub id."
        )
    images = model_class.main_input_name == "pixel_values"
    size = (pixels or image_size(config) or DUMMY_PIXELS) if images else None
    targets = {"": SwapSpec(config, model_class, (), "", None, (), ())}
    reason = None
    for name in fitting:
        try:
            targets[name] = resolve_swap(config, model_class, name, {}, None, size)
        except UsageError as error:
            reason = error
    if len(targets) == 1 and reason is not None:
        raise reason
    if images:
        targets = {name: target._replace(config=_of_size(target.config, size)) for name, target in targets.items()}
    models = {name: target.model_class(target.config).eval() for name, target in targets.items()}
    sizes = {name: parameters(model).total for name, model in models.items()}
    smaller = sorted((name for name in models if not name or sizes[name] < sizes[""]), key=lambda n: -sizes[n])
    latencies = latency(
        {name: models[name] for name in smaller},
        batch=batch,
        length=length,
        seconds=seconds * len(smaller),
        most_rounds=30,
        pixels=size,
    )
    return [
        Candidate(
            name,
            sizes[name],
            flops(targets[name].config, targets[name].model_class, batch=1, length=length, pixels=size),
            latencies[name],
            targets[name].notes,
        )
        for name in smaller
    ]


def _of_size(config: PretrainedConfig, size: Any) -> PretrainedConfig:
    """Return a copy of `config` that states the size of its images, so that all models are measured on the same."""
    new = copy.deepcopy(config)
    new.image_size = size
    return new
