"""Presets beside the model they would go under: sizes, FLOPs and latency, measured here."""

import copy
from dataclasses import dataclass

from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.backbones.presets import PRESETS
from hf_pe.backbones.target import Target, target_of
from hf_pe.errors import UsageError
from hf_pe.measure import flops, latency, parameters
from hf_pe.report import Latency


@dataclass(frozen=True)
class Candidate:
    """One row of the list.

    Attributes:
        name: of the preset; "" for the model itself.
        parameters: in all.
        flops: of one example.
        latency: of one example or batch; random weights, since these do not change it.
        notes: what was adapted.
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
    image_size: int | None = None,
    batch: int = 1,
    length: int = 128,
    seconds: float = 0.5,
) -> list[Candidate]:
    """The model itself, then the presets that are smaller and fit under its head, the largest first.

    Args:
        config: of the model.
        model_class: whose head stays.
        image_size: pixels a side, where the config does not say.
        batch: examples a timed pass.
        length: tokens, for text.
        seconds: to time each model for; all take turns.

    Raises:
        UsageError: no preset reads what the model reads, or none fits under its head.
    """
    fitting = [name for name, preset in PRESETS.items() if preset.kind == model_class.main_input_name]
    if not fitting:
        raise UsageError(
            f"swap: no preset reads {model_class.main_input_name}. Make the model's own architecture smaller by "
            "`config` values, or name a folder or a Hub id."
        )
    if image_size is not None:
        config = copy.deepcopy(config)
        config.image_size = image_size
    targets = {"": Target(config, model_class, (), "", None, (), ())}
    reason = None
    for name in fitting:
        try:
            targets[name] = target_of(config, model_class, name, {}, None, image_size)
        except UsageError as error:
            reason = error
    if len(targets) == 1 and reason is not None:
        raise reason
    models = {name: target.model_class(target.config).eval() for name, target in targets.items()}
    sizes = {name: parameters(model).total for name, model in models.items()}
    kept = sorted((name for name in models if not name or sizes[name] < sizes[""]), key=lambda n: -sizes[n])
    taken = latency(
        {name: models[name] for name in kept}, batch=batch, length=length, seconds=seconds * len(kept), most_rounds=30
    )
    return [
        Candidate(
            name,
            sizes[name],
            flops(targets[name].config, targets[name].model_class, batch=1, length=length),
            taken[name],
            targets[name].notes,
        )
        for name in kept
    ]
