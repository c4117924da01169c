"""Cuts a model down to the kept units. Mechanics only: what to keep is decided elsewhere.

Cutting and loading are the same act: the smaller config makes the skeleton, transformers' own loading code fills it
with the sliced weights, ties and rebuilds what is not stored. The given model is left alone.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.anatomy import Axis, renumber_, resized, skeleton

Kept = Mapping[str, Sequence[int]]
"""Kept units per group of an axis: {"encoder.layer.0": [0, 2, 3], ...}; for depth per stack."""


def cut(model: PreTrainedModel, axis: Axis, kept: Kept) -> PreTrainedModel:
    """Return a new model with only the `kept` units of `axis`, same class, dtype, device and mode.

    It shares no memory with `model`: either may be trained on its own.

    Raises:
        ValueError: `kept` names other groups than the axis has, an index out of range or twice, or different
            numbers of units per group (the stock config has one number for all).
    """
    size = _check(axis, kept)
    config = cut_config(model.config, axis, size, kept)
    state = _depth_state if axis.kind == "layers" else _width_state
    old = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    weights = {
        name: tensor.clone() if tensor.untyped_storage().data_ptr() in old else tensor
        for name, tensor in state(model, config, axis, kept).items()
    }
    new = rebuilt(model, config, weights)
    if axis.kind == "vocabulary" and model.can_generate():
        renumber_(new.generation_config, list(next(iter(kept.values()))))
    return new


def rebuilt(model: PreTrainedModel, config: PretrainedConfig, weights: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """A model of the same class, dtype, device and mode from `config`, filled with `weights` and nothing else."""
    loader: Any = type(model)
    new, info = loader.from_pretrained(
        None,
        config=config,
        state_dict=dict(weights),
        dtype=model.dtype,
        output_loading_info=True,
        **_attention(model),
    )
    problems = {k: v for k, v in info.items() if v and k.endswith("keys")}
    assert not problems, f"building {type(model).__name__} anew left {problems}"
    if model.can_generate():
        new.generation_config = copy.deepcopy(model.generation_config)
    new.config._name_or_path = model.config._name_or_path
    return new.to(model.device).train(model.training)  # type: ignore[no-any-return]


def _attention(model: PreTrainedModel) -> dict[str, str]:
    """How attention is computed, where it is not what a new model would choose: not every part of one knows sdpa."""
    how = model.config._attn_implementation
    return {} if how in (None, "sdpa") else {"attn_implementation": how}


def cut_config(config: PretrainedConfig, axis: Axis, size: int, kept: Kept | None = None) -> PretrainedConfig:
    """Return the config of the model after `axis` is cut to `size` units; exact for sizes without `kept`."""
    units = list(next(iter(kept.values()))) if kept and axis.kind in ("layers", "vocabulary") else None
    return resized(config, axis.config_field, size, units)


def _check(axis: Axis, kept: Kept) -> int:
    if set(kept) != set(axis.groups):
        raise ValueError(f"Kept units of '{axis.name}' are for {sorted(kept)}, the model has {list(axis.groups)}.")
    for group, units in kept.items():
        if list(units) != sorted(set(units)) or not units or units[0] < 0 or units[-1] >= axis.size:
            raise ValueError(
                f"Kept units of '{axis.name}' in '{group}' must rise, none twice, within 0..{axis.size - 1}; "
                f"got {list(units)[:8]}..."
            )
    sizes = {len(units) for units in kept.values()}
    if len(sizes) != 1:
        raise ValueError(f"A native cut keeps the same number of '{axis.name}' units everywhere; got {sorted(sizes)}.")
    return sizes.pop()


def _width_state(model: PreTrainedModel, config: PretrainedConfig, axis: Axis, kept: Kept) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    stacks: dict[str, list[torch.Tensor]] = {}
    for slot in axis.slots:
        if slot.name in state:  # buffers that are not stored are rebuilt by the loading code
            tensor = slot.of(state)
            places = slot.layout.places(torch.as_tensor(kept[slot.group]), axis.size)
            narrow = tensor.index_select(slot.dim or 0, places.to(tensor.device))
            if slot.entry is None:
                state[slot.name] = narrow
            else:
                stacks.setdefault(slot.name, []).append(narrow)
    return state | {name: torch.stack(entries) for name, entries in stacks.items()}


def _depth_state(model: PreTrainedModel, config: PretrainedConfig, axis: Axis, kept: Kept) -> dict[str, torch.Tensor]:
    old, new = model.state_dict(), skeleton(config, type(model)).state_dict()
    return {name: _moved(old, name, kept) for name in new}


def _moved(old: Mapping[str, torch.Tensor], name: str, kept: Kept) -> torch.Tensor:
    """The old tensor for a name in the shorter stack; what only a position has (T5's bias) stays with it."""
    for stack, units in kept.items():
        if name.startswith(stack + "."):
            position, _, rest = name[len(stack) + 1 :].partition(".")
            return old.get(f"{stack}.{units[int(position)]}.{rest}", old[name] if name in old else torch.empty(0))
    return old[name]
