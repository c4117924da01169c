"""Tiny models of an architecture, with random weights that react to every unit."""

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.anatomy import by_layer, keep_layers_, names_tokens
from hf_pe.anatomy.fields import AXIS_OF_FIELD, DEPTHS
from hf_pe.dummies.fields import DEEPEST, GRID, LARGE, SECTIONS, TINY, TINY_FIELDS


def tiny(config: PretrainedConfig, *, depth: bool = False, sections: tuple[int, ...] = ()) -> PretrainedConfig:
    """Shrink every size field of `config` but keep all that shapes the computation; two layers unless `depth`.

    `sections` are of rotations in three parts, which have to add up to half of the head size.
    """
    new = copy.deepcopy(config)
    _shrink(new, depth)
    if sections:
        text = new.get_text_config()
        text.rope_parameters = {**text.rope_parameters, "mrope_section": list(sections)}
    return type(config).from_dict(new.to_dict())


def instances(config: PretrainedConfig, *, depth: bool = False) -> Iterator[tuple[PretrainedConfig, bool]]:
    """Small configs of the same architecture, the smallest first: `tiny`, then with its own widths, at first with small
    images, then as it is.

    What belongs together in a config is not always told: a narrower one may be none, and is left out. With each comes
    whether it is the one before with its rotation in other parts, which only helps where that could not be run.
    """

    def as_wide(*more: str) -> PretrainedConfig:
        new = copy.deepcopy(config)
        _shrink(new, depth, only=("layers", "vocabulary", *more))
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


def lively(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
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


def _shrink(config: PretrainedConfig, depth: bool, only: tuple[str, ...] | None = None) -> None:
    """In place; with `only`, these axes and what goes with them."""
    kv = vars(config).get("num_key_value_heads")  # asking for what differs between layers raises
    layers = None
    told = config.to_dict()
    for field, value in told.items():
        sub = vars(config).get(field)
        if isinstance(sub, PretrainedConfig):
            _shrink(sub, depth, only)
            continue
        if field in DEPTHS and isinstance(value, list):
            if any(key.endswith("_blocks") and isinstance(each, list) for key, each in told.items()):
                continue  # which name some of them by number
            setattr(config, field, [min(each, DEEPEST) for each in value])
            continue
        if field == "backbone_feature_sizes":  # of maps of an image, the last of which has its patches
            setattr(config, field, [[side * GRID // value[-1][-1] for side in each] for each in value])
            continue
        if field == "image_size" and isinstance(value, list) and min(value) >= LARGE:
            setattr(config, field, [side // 16 for side in value])
            continue
        axis = AXIS_OF_FIELD.get(field)
        if axis == "layers" and any(
            key in DEPTHS and isinstance(v, list) and len(v) == value for key, v in told.items()
        ):
            continue  # stages
        if axis == "hidden" and any(isinstance(each, list) and each[:1] == [value] for each in told.values()):
            continue  # of the first of some stages, whose widths stay
        ids = names_tokens(field)
        if ids and isinstance(value, (list, dict)):
            setattr(config, field, _token(value))
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        patch = vars(config).get("patch_size")
        if only and field == "image_size" and isinstance(patch, int) and ("images" in only or value >= LARGE):
            setattr(config, field, min(value, GRID * patch))
            continue
        if only and not ids and axis not in only and field != "image_embedding_size":
            continue
        if axis == "layers" and not depth:
            layers, new = value, min(value, 2)
        elif axis in ("heads", "kv_groups"):
            fewest = kv if isinstance(kv, int) else value
            new = 1 << (min(fewest, TINY["heads"]).bit_length() - 1)  # a power of two divides the hidden width
            if axis == "heads" and isinstance(kv, int) and value > kv:
                new *= 2
        else:
            follows = TINY["hidden"] if field.endswith("hidden_size") else value
            new = TINY.get(axis or "", TINY_FIELDS.get(field, follows))
            if field == "embed_dim" and isinstance(heads := vars(config).get("num_heads"), (list, tuple)):
                new = heads[0] * TINY_FIELDS["head_dim"]
        setattr(config, field, _token(value) if ids else min(value, new))
    told = config.to_dict()
    if isinstance(told.get("expand"), int) and {"num_heads", "head_dim"} <= told.keys() and not only:  # Mamba 2
        config.head_dim = told["expand"] * told["hidden_size"] // told["num_heads"]
    if layers is None or layers <= 2:
        return
    lists = [v for v in config.to_dict().values() if isinstance(v, list) and len(v) == layers]
    named = [int(key) for v in config.to_dict().values() if by_layer(v) for key in v]
    other = next((i for each in lists for i in range(layers) if each[i] != each[0]), (named or [layers - 1])[0])
    keep_layers_(config, layers, [0, other])


def _token(value: Any) -> Any:
    """A token id within the tiny vocabulary; of lists and dicts of ids all of them."""
    if isinstance(value, dict):
        return {_token(key): _token(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_token(each) for each in value)
    return value % 5 if isinstance(value, int) and value >= TINY["vocabulary"] else value
