"""Cuts a model down to the kept units. Mechanics only: what to keep is decided elsewhere.

Cutting and loading are the same act: the smaller config makes the meta_model, transformers' own loading code fills it
with the sliced weights, ties and rebuilds what is not stored. The given model is left alone.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.anatomy import (
    Axis,
    Slot,
    change_,
    meta_model,
    resized,
    rows_in_place,
    size_in,
)
from hf_pe.anatomy.axis import Kept
from hf_pe.anatomy.generation_config import generation_changes
from hf_pe.layer_dtypes import align_dtypes_


def cut(model: PreTrainedModel, axis: Axis, kept: Kept) -> PreTrainedModel:
    """Return a new model with only the `kept` units of `axis`, same class, dtype, device and mode.

    It shares no memory with `model`: either may be trained on its own.

    Raises:
        ValueError: `kept` names other groups than the axis has, an index out of range or twice, or different
            numbers of units per group (the stock config has one number for all).
    """
    size = _check(axis, kept)
    if axis.kind.is_vocabulary:
        _require_in_place(model, axis, kept)
    generation = vars(model.generation_config) if model.can_generate() else {}
    changes = generation_changes(generation, model.config, axis, kept)
    config = cut_config(model.config, axis, size, kept)
    state = model.state_dict()
    old = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
    after = meta_model(config, type(model)).state_dict() if axis.kind.is_depth else state
    weights = {
        name: tensor.clone() if tensor.untyped_storage().data_ptr() in old else tensor
        for name, tensor in Narrowed(state, axis, kept, after).items()
    }
    new = rebuilt(model, config, weights)
    require_size(new.config, axis, size)
    if changes:
        change_(new.generation_config, changes)
    return new


def _require_in_place(model: PreTrainedModel, axis: Axis, kept: Kept) -> None:
    """Refuse rows of the vocabulary of which the first do not keep their place, where the model counts on that."""
    first = rows_in_place(model, {slot.name.rpartition(".")[0] for slot in axis.slots})
    for units in kept.values():
        if list(units[:first]) != [*range(first)]:
            raise ValueError(
                f"{type(model).__name__} counts positions from its padding token, which is row {first - 1} of the "
                f"vocabulary and has to stay there: keep rows 0 to {first - 1}."
            )


def rebuilt(
    model: PreTrainedModel,
    config: PretrainedConfig,
    weights: Mapping[str, torch.Tensor],
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """Return a model of the same class, device and mode from `config`, filled with `weights` only.

    Args:
        model: as it was.
        config: of the new one.
        weights: by name.
        dtype: of all weights but those that the class keeps in float32; default: each in its own, where transformers
            would make another one of it than that of most weights.
    """
    loader: Any = type(model)
    new, info = loader.from_pretrained(
        None,
        config=config,
        state_dict=dict(weights),
        dtype=dtype or main_dtype(model),
        output_loading_info=True,
        **_attention(model),
    )
    problems = {k: v for k, v in info.items() if v and k.endswith("keys")}
    assert not problems, f"building {type(model).__name__} anew left {problems}"
    if dtype is None:
        _keep_dtypes_(new, weights)
    if model.can_generate():
        new.generation_config = copy.deepcopy(model.generation_config)
    new.config._name_or_path = model.config._name_or_path
    packed = getattr(model, "hf_quantizer", None) is not None  # what made it so cannot be taken back
    new._weight_conversions = None if packed else getattr(model, "_weight_conversions", None)  # files as the original's
    return new.to(model.device).train(model.training)  # type: ignore[no-any-return]


def dtype_name(dtype: torch.dtype | str) -> str:
    """Return how people write a dtype: float32 for torch.float32."""
    return str(dtype).removeprefix("torch.")


def main_dtype(model: PreTrainedModel) -> torch.dtype:
    """Return the dtype of most floating-point values of a model: `model.dtype` is that of the first parameter alone."""
    counts: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            counts[parameter.dtype] += parameter.numel()
    return max(counts, key=lambda each: counts[each]) if counts else model.dtype


def _keep_dtypes_(model: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Give parameters that were in another dtype than most (a head in float32) their own values back."""
    given_back = False
    for name, parameter in model.named_parameters():
        given = weights.get(name)
        if given is not None and given.is_floating_point() and given.dtype != parameter.dtype:
            parameter.data = given.detach().to(parameter.device)
            given_back = True
    if given_back:
        align_dtypes_(model)


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return a copy of `model` in `dtype`, equal to what `from_pretrained(folder, dtype=dtype)` loads of it.

    Parameters and stored buffers are cast. What a model computes when it is built (rotary frequencies) stays in
    float32, and so do the modules that the class keeps in float32 (T5's second FFN map in float16): casting the whole
    module by `model.to(dtype)` would give another model than the one that its saved files load as.
    """
    config = copy.deepcopy(model.config)
    config.dtype = dtype
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return rebuilt(model, config, weights, dtype)


def in_dtype(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return `model` itself where it is in `dtype`, else a copy that is; see `cast`."""
    return model if main_dtype(model) == dtype else cast(model, dtype)


def _attention(model: PreTrainedModel) -> dict[str, str]:
    """How attention is computed, where it is not what a new model would choose: not every part of one knows sdpa."""
    how = model.config._attn_implementation
    return {} if how in (None, "sdpa") else {"attn_implementation": how}


def cut_config(config: PretrainedConfig, axis: Axis, size: int, kept: Kept | None = None) -> PretrainedConfig:
    """Return the config of the model after `axis` is cut to `size` units; exact for sizes without `kept`."""
    units = list(next(iter(kept.values()))) if kept else None
    return resized(
        config,
        axis.config_field,
        size,
        units,
        keep_head_size=not axis.narrows_heads,
        whole_heads=axis.whole_heads,
    )


def require_size(config: PretrainedConfig, axis: Axis, size: int) -> None:
    """Assert that a config says the size that its axis was cut to."""
    built = size_in(config, axis.config_field)
    assert built == size, f"{axis.name}: cut to {size} units, and the config of the result says {built}"


def _check(axis: Axis, kept: Kept) -> int:
    if set(kept) != set(axis.groups):
        raise ValueError(f"Kept units of '{axis.name}' are for {sorted(kept)}, the model has {list(axis.groups)}.")
    for group, units in kept.items():
        if list(units) != sorted(set(units)) or not units or units[0] < 0 or units[-1] >= axis.size:
            raise ValueError(
                f"Kept units of '{axis.name}' in '{group}' must rise, none twice, within 0..{axis.size - 1}; "
                f"got {list(units)[:8]}..."
            )
        heads = axis.in_group(group)[0].subgroups
        each = Counter(unit * heads // axis.size for unit in units)
        if heads > 1 and len({each[head] for head in range(heads)}) > 1:
            parts = "heads" if axis.kind.is_residual else "key-value groups"
            raise ValueError(
                f"Kept units of '{axis.name}' in '{group}': each of its {heads} {parts} keeps the same number."
            )
        alike = axis.equal_parts(group)
        held = axis.size // alike
        if len(units) != alike * len({unit % held for unit in units}):
            raise ValueError(
                f"Kept units of '{axis.name}' in '{group}': each of its {alike} parts of {held} keeps the same places."
            )
        block = axis.in_group(group)[0].chunk
        if any(count != block for count in Counter(unit // block for unit in units).values()):
            raise ValueError(f"Kept units of '{axis.name}' in '{group}': whole heads of {block} stay or go.")
    sizes = {len(units) for units in kept.values()}
    if len(sizes) != 1:
        raise ValueError(f"A native cut keeps the same number of '{axis.name}' units everywhere; got {sorted(sizes)}.")
    return sizes.pop()


def narrowed(tensor: torch.Tensor, slot: Slot, axis: Axis, kept: Kept) -> torch.Tensor:
    """What stays of `tensor` along `slot`: a copy, scaled where the model scales by the number of units."""
    units, dim = torch.as_tensor(kept[slot.group]), slot.dim or 0
    found = tensor.index_select(dim, slot.layout.positions(units, axis.size).to(tensor.device))
    if slot.power:
        first = torch.cat([slot.layout.part_positions(i, len(units)) for i in range(slot.powered_parts)]).to(
            tensor.device
        )
        scaled = (found.index_select(dim, first) + slot.offset) * (len(units) / axis.size) ** slot.power - slot.offset
        found.index_copy_(dim, first, scaled)
    return found


class Narrowed(Mapping[str, torch.Tensor]):
    """The state of a model after a cut, tensor by tensor as they are asked for.

    Args:
        state: of the model before: tensors in memory, or on disk.
        axis, kept: the cut.
        names: of the model after (its state dict on the meta device).
    """

    def __init__(
        self, state: Mapping[str, torch.Tensor], axis: Axis, kept: Kept, names: Mapping[str, torch.Tensor]
    ) -> None:
        self.state, self.axis, self.kept = state, axis, kept
        self.names = [name for name in names if self._before(name) in state]
        self.slots: dict[str, list[Slot]] = {}
        for slot in axis.slots if not axis.kind.is_depth else ():
            self.slots.setdefault(slot.name, []).append(slot)

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self.state[self._before(name)]
        entries: dict[int, torch.Tensor] = {}
        for slot in self.slots.get(name, ()):
            if slot.entry is None:
                tensor = narrowed(tensor, slot, self.axis, self.kept)
            else:
                entries[slot.entry] = narrowed(entries.get(slot.entry, tensor[slot.entry]), slot, self.axis, self.kept)
        return torch.stack([*entries.values()]) if entries else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def _before(self, name: str) -> str:
        """What a tensor was called; what only a position has (T5's bias) stays with it."""
        if self.axis.kind.is_depth:
            for stack, units in self.kept.items():
                if name.startswith(stack + "."):
                    position, _, rest = name[len(stack) + 1 :].partition(".")
                    moved = f"{stack}.{units[int(position)]}.{rest}"
                    return moved if moved in self.state else name
        return name
