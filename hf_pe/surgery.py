"""Cuts a model down to its kept units, which are chosen elsewhere.

A cut is a load: transformers builds the model of the smaller config and loads the sliced weights as if they came from a
checkpoint, so that tied weights and buffers that are not saved are right. The original model is not changed.
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
    size = _require_valid(axis, kept)
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
    """Refuse kept rows of the vocabulary that move the first rows, in models that count positions from them."""
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
        model: the original.
        config: of the new model.
        weights: by name.
        dtype: of all weights except those that the class keeps in float32; default: each weight keeps its own dtype.
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
    quantized = getattr(model, "hf_quantizer", None) is not None  # its conversions cannot be reversed
    new._weight_conversions = None if quantized else getattr(model, "_weight_conversions", None)  # to save as before
    return new.to(model.device).train(model.training)  # type: ignore[no-any-return]


def dtype_name(dtype: torch.dtype | str) -> str:
    """Return the short name of a dtype: float32 for torch.float32."""
    return str(dtype).removeprefix("torch.")


def main_dtype(model: PreTrainedModel) -> torch.dtype:
    """Return the dtype of most floating-point values of a model: `model.dtype` is that of the first parameter alone."""
    counts: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            counts[parameter.dtype] += parameter.numel()
    return max(counts, key=lambda dtype: counts[dtype]) if counts else model.dtype


def _keep_dtypes_(model: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Restore parameters whose weights have another dtype than most (a head in float32), which loading has cast."""
    is_mixed = False
    for name, parameter in model.named_parameters():
        weight = weights.get(name)
        if weight is not None and weight.is_floating_point() and weight.dtype != parameter.dtype:
            parameter.data = weight.detach().to(parameter.device)
            is_mixed = True
    if is_mixed:
        align_dtypes_(model)


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return a copy of `model` in `dtype`, equal to the model that `from_pretrained(folder, dtype=dtype)` loads.

    Parameters and stored buffers are cast. Buffers that a model computes when it is built (rotary frequencies) stay in
    float32, and so do modules that the class keeps in float32 (T5's second FFN layer in float16). `model.to(dtype)`
    would cast these as well and give a model that differs from its own saved files.
    """
    config = copy.deepcopy(model.config)
    config.dtype = dtype
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return rebuilt(model, config, weights, dtype)


def in_dtype(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return `model` itself where it is in `dtype`, else a copy that is; see `cast`."""
    return model if main_dtype(model) == dtype else cast(model, dtype)


def _attention(model: PreTrainedModel) -> dict[str, str]:
    """Return the attention implementation as a keyword for loading, where it is not sdpa, the default."""
    implementation = model.config._attn_implementation
    return {} if implementation in (None, "sdpa") else {"attn_implementation": implementation}


def cut_config(config: PretrainedConfig, axis: Axis, size: int, kept: Kept | None = None) -> PretrainedConfig:
    """Return the config of the model after a cut of `axis`.

    Args:
        config: before the cut.
        axis: that is cut.
        size: units that are kept in each group.
        kept: the kept units, for fields that list units one by one; without it only sizes are exact.
    """
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
    """Assert that a config states the size that its axis was cut to."""
    stated = size_in(config, axis.config_field)
    assert stated == size, f"{axis.name}: cut to {size} units, but the config of the result states {stated}"


def _require_valid(axis: Axis, kept: Kept) -> int:
    """Return the number of kept units in each group.

    Raises:
        ValueError: see `cut`.
    """
    if set(kept) != set(axis.groups):
        raise ValueError(
            f"Kept units of '{axis.name}': expected the groups {list(axis.groups)} of the model, got {sorted(kept)}."
        )
    for group, units in kept.items():
        if list(units) != sorted(set(units)) or not units or units[0] < 0 or units[-1] >= axis.size:
            raise ValueError(
                f"Kept units of '{axis.name}' in '{group}': expected rising indices within 0..{axis.size - 1}, each "
                f"once; got {list(units)[:8]}..."
            )
        subgroups = axis.in_group(group)[0].subgroups
        counts = Counter(unit * subgroups // axis.size for unit in units)
        if subgroups > 1 and len({counts[number] for number in range(subgroups)}) > 1:
            parts = "heads" if axis.kind.is_residual else "key-value groups"
            raise ValueError(
                f"Kept units of '{axis.name}' in '{group}': expected as many in each of its {subgroups} {parts}."
            )
        parts_count = axis.equal_parts(group)
        part_size = axis.size // parts_count
        if len(units) != parts_count * len({unit % part_size for unit in units}):
            raise ValueError(
                f"Kept units of '{axis.name}' in '{group}': expected the same units in each of its {parts_count} parts "
                f"of {part_size}."
            )
        chunk = axis.in_group(group)[0].chunk
        if any(count != chunk for count in Counter(unit // chunk for unit in units).values()):
            raise ValueError(f"Kept units of '{axis.name}' in '{group}': expected whole heads of {chunk} units.")
    sizes = {len(units) for units in kept.values()}
    if len(sizes) != 1:
        raise ValueError(
            f"Kept units of '{axis.name}': expected the same number in every group, since the config has one number "
            f"for all; got {sorted(sizes)}."
        )
    return sizes.pop()


def narrowed(tensor: torch.Tensor, slot: Slot, axis: Axis, kept: Kept) -> torch.Tensor:
    """Return a copy of `tensor` with the kept units of `slot`, scaled where the model scales by the number of units."""
    units, dim = torch.as_tensor(kept[slot.group]), slot.dim or 0
    result = tensor.index_select(dim, slot.layout.positions(units, axis.size).to(tensor.device))
    if slot.power:
        first = torch.cat([slot.layout.part_positions(i, len(units)) for i in range(slot.powered_parts)]).to(
            tensor.device
        )
        scaled = (result.index_select(dim, first) + slot.offset) * (len(units) / axis.size) ** slot.power - slot.offset
        result.index_copy_(dim, first, scaled)
    return result


class Narrowed(Mapping[str, torch.Tensor]):
    """Hold the state dict of a model after a cut, and slice each tensor when it is read.

    Args:
        state: of the model before: tensors in memory or on disk.
        axis: that is cut.
        kept: its kept units.
        names: the state dict of the model after, on the meta device.
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
        """Return the name of a tensor before the cut; one that only its position has (T5's bias) keeps its name."""
        if self.axis.kind.is_depth:
            for stack, units in self.kept.items():
                if name.startswith(stack + "."):
                    position, _, rest = name[len(stack) + 1 :].partition(".")
                    moved = f"{stack}.{units[int(position)]}.{rest}"
                    return moved if moved in self.state else name
        return name
