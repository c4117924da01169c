"""Tiny models of an architecture, with random weights that react to every unit."""

import copy
import functools
from collections.abc import Callable, Iterator

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.dummies.fields import SECTIONS
from hf_pe.dummies.shrink import shrink_


def tiny(config: PretrainedConfig, *, depth: bool = False, sections: tuple[int, ...] = ()) -> PretrainedConfig:
    """Shrink every size field of `config` but keep all that shapes the computation; two layers unless `depth`.

    `sections` are of rotations in three parts, which have to add up to half of the head size.
    """
    new = copy.deepcopy(config)
    shrink_(new, depth=depth)
    if sections:
        text = new.get_text_config()
        text.rope_parameters = {**text.rope_parameters, "mrope_section": list(sections)}
    return type(config).from_dict(new.to_dict())


def tiny_configs(config: PretrainedConfig, *, depth: bool = False) -> Iterator[tuple[PretrainedConfig, bool]]:
    """Small configs of the same architecture, the smallest first: `tiny`, then with its own widths, at first with small
    images, then as it is.

    What belongs together in a config is not always told: a narrower one may be none, and is left out. With each comes
    whether it is the one before with its rotation in other parts, which only helps where that could not be run.
    """

    def as_wide(*more: str) -> PretrainedConfig:
        new = copy.deepcopy(config)
        shrink_(new, depth=depth, only=("layers", "vocabulary", *more))
        return type(config).from_dict(new.to_dict())

    rope = config.get_text_config().to_dict().get("rope_parameters") or {}
    parts = SECTIONS if "rope_theta" in rope else ()
    ways: list[tuple[Callable[[], PretrainedConfig], bool]] = [
        (lambda: tiny(config, depth=depth), False),
        *((functools.partial(tiny, config, depth=depth, sections=each), True) for each in parts),
        (lambda: as_wide("images"), False),
        (as_wide, False),
        (lambda: copy.deepcopy(config), False),
    ]
    last = None
    for way, again in ways:
        try:
            small = way()
        except Exception:  # a config may refuse with anything
            continue
        if last is None or small.to_dict() != last.to_dict():
            yield small, again
        last = small


def randomize_weights_(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Redraw all parameters so that nothing is zero: vectors around 1, biases around 0, matrices by fan-in."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        if parameter.ndim > 1:
            owner = model.get_submodule(name.rpartition(".")[0])
            stacked = parameter.ndim == 3 and not isinstance(owner, nn.Conv1d)  # one matrix for each expert
            noise *= (min(parameter.shape[1:]) if stacked else parameter[0].numel()) ** -0.5 * 1.5
        elif name.endswith("bias"):
            noise *= 0.3
        else:
            noise = 1 + 0.2 * noise
        parameter.data = noise.to(parameter)
    model.eval().float()
    return model
