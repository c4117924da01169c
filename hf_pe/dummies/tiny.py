"""Makes tiny configs of an architecture, and random weights with which every unit of a model changes its outputs."""

import copy
import functools
from collections.abc import Callable, Iterator

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.dummies.fields import MROPE_SECTIONS
from hf_pe.dummies.shrink import shrink_


def tiny(config: PretrainedConfig, *, depth: bool = False, sections: tuple[int, ...] = ()) -> PretrainedConfig:
    """Return a copy of `config` with tiny sizes and everything else, which shapes the computation, as it is.

    Args:
        config: of the model.
        depth: keep all layers; otherwise at most two are kept.
        sections: of multimodal rotary embeddings, which have to add up to half of the rotated head size; default: the
            config's.
    """
    new = copy.deepcopy(config)
    shrink_(new, depth=depth)
    if sections:
        text = new.get_text_config()
        text.rope_parameters = {**text.rope_parameters, "mrope_section": list(sections)}
    return type(config).from_dict(new.to_dict())


def tiny_configs(config: PretrainedConfig, *, depth: bool = False) -> Iterator[tuple[PretrainedConfig, bool]]:
    """Yield small configs of the same architecture, the smallest first, for models that may fail to build or run.

    The first is `tiny`; then come configs with the widths of `config`, first with small images; the last is a copy of
    `config`. Fields may depend on each other in ways that no config states, so configs that are refused are left out.

    Args:
        config: of the model.
        depth: keep all layers; otherwise at most two are kept.

    Yields:
        A config, and whether it differs from the one before only in the sections of its rotary embeddings, which helps
        where that one could not be run.
    """

    def with_own_widths(*kinds: str) -> PretrainedConfig:
        new = copy.deepcopy(config)
        shrink_(new, depth=depth, only=("layers", "vocabulary", *kinds))
        return type(config).from_dict(new.to_dict())

    rope = config.get_text_config().to_dict().get("rope_parameters") or {}
    sections = MROPE_SECTIONS if "rope_theta" in rope else ()
    makers: list[tuple[Callable[[], PretrainedConfig], bool]] = [
        (lambda: tiny(config, depth=depth), False),
        *((functools.partial(tiny, config, depth=depth, sections=each), True) for each in sections),
        (lambda: with_own_widths("images"), False),
        (with_own_widths, False),
        (lambda: copy.deepcopy(config), False),
    ]
    last = None
    for make, other_sections in makers:
        try:
            small = make()
        except Exception:  # a config may refuse values with any error
            continue
        if last is None or small.to_dict() != last.to_dict():
            yield small, other_sections
        last = small


def randomize_weights_(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Draw all parameters at random so that none is zero: vectors around 1, biases around 0, matrices by fan-in."""
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
