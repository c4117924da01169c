"""Finds the slots of an axis, and their layouts, from the shapes of two models."""

from collections import Counter
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy.axis import Axis, Layout, Slot
from hf_pe.anatomy.fields import EVERYWHERE
from hf_pe.anatomy.kinds import AxisKind
from hf_pe.anatomy.module_names import (
    all_blocks,
    block_of,
    enclosing_modules,
    integer_attributes,
    owner_of,
    reads_units,
    stack_of,
    tensor_shapes,
)


def slots_of(base: PreTrainedModel, other: PreTrainedModel, size: int | None, probe: int, kind: AxisKind) -> list[Slot]:
    """Return the places where the shapes of two models, built with sizes `size` and `probe`, differ."""
    before, after = tensor_shapes(base), tensor_shapes(other)
    if kind.is_depth:
        own = all_blocks(before)
        changed = own ^ all_blocks(after)
        outer = {stack_of(block) for block in changed if changed.isdisjoint(enclosing_modules(stack_of(block)))}
        counts = Counter(map(stack_of, own))
        stacks = {stack for stack in outer if counts[stack] == size}  # others have a count of their own
        return [Slot(key, None, stack) for key in before for stack in stacks if key.startswith(f"{stack}.")]
    slots: list[Slot] = []
    for key, shape in before.items():
        for dim in range(len(shape)) if key in after and len(shape) == len(after[key]) else ():
            if shape[dim] == after[key][dim]:
                continue
            layout = _layout(shape[dim], size, after[key][dim], probe, kind)
            if dim > 0 and kind.inside_experts and _holds_experts(base, key):
                slots += _of_experts(base, key, dim - 1, layout)
            else:
                group = EVERYWHERE if kind.is_shared else block_of(key)
                slots.append(Slot(key, dim, group, reads_units(base, key, dim), layout))
    slots = _interleaved(slots) if kind.inside_experts else slots
    slots = _fused(slots) if kind.takes_queries else slots
    return _with_shared_bias(slots, base) if kind.is_heads else slots


def _interleaved(slots: list[Slot]) -> list[Slot]:
    """Where the map that reads the units has several inputs a unit, what a unit has in the block lies together."""
    joined = [slot for slot in slots if len(slot.layout.parts) > 1 and slot.entry is None]
    wide = {slot.group for slot in joined if slot.consumes}
    return [replace(s, layout=Layout((len(s.layout.parts),))) if s.group in wide else s for s in slots]


def _with_shared_bias(slots: list[Slot], base: PreTrainedModel) -> list[Slot]:
    """Where one block holds the table of position biases for all heads of its stack (T5), all blocks keep the same."""
    groups = {slot.group for slot in slots}
    without = groups - {slot.group for slot in slots if isinstance(owner_of(base, slot.name), nn.Embedding)}
    shared = {stack_of(group) for group in groups - without} & {stack_of(group) for group in without}
    return [replace(slot, group=stack_of(slot.group)) if stack_of(slot.group) in shared else slot for slot in slots]


def _holds_experts(model: PreTrainedModel, key: str) -> bool:
    """Whether a parameter is a stack with one entry for each expert: it, or one beside it, is a stack of matrices."""
    owner = model.get_submodule(key.rpartition(".")[0])
    convolution = isinstance(owner, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return not convolution and any(p.ndim == 3 for p in owner.parameters(recurse=False))


def _of_experts(model: PreTrainedModel, key: str, dim: int, layout: Layout) -> list[Slot]:
    """A slot for each entry; the module says whether its gate and up are interleaved, and which way its weights lie."""
    owner: Any = model.get_submodule(key.rpartition(".")[0])
    stack = model.get_parameter(key)
    if not getattr(owner, "is_concatenated", True) and len(layout.parts) > 1:
        layout = Layout((len(layout.parts),))
    consumes = stack.ndim == 3 and dim == (0 if getattr(owner, "is_transposed", False) else 1)
    place = key.rpartition(".")[0]
    return [Slot(key, dim, f"{place}.{entry}", consumes, layout, entry) for entry in range(len(stack))]


def _layout(length: int, size: int | None, other_length: int, probe: int, kind: AxisKind) -> Layout:
    """Read the layout off two lengths. Fused FFN parts and joined widths lie one after the other, heads are blocks;
    what is a whole number of times shorter than the hidden width holds a share of it. The proof checks."""
    share = (size or 0) // length
    if kind.is_residual and share > 1 and length * share == size and other_length * share == probe:
        return Layout(share=share)
    per_unit = other_length // probe if size is None else (length - other_length) // (size - probe)
    return Layout((1,) * per_unit if per_unit > 1 and kind.is_fused else (max(per_unit, 1),))


def _fused(slots: list[Slot]) -> list[Slot]:
    """Tell fused query, key and value: the one map of a block that is wider than a group's queries, which are as wide
    as what the output map reads."""
    queries = next((slot.layout.parts[0] for slot in slots if slot.consumes), 0)
    blocks = Counter(slot.group for slot in slots if not slot.consumes and slot.name.endswith("weight"))
    if max(blocks.values(), default=0) > 1:  # apart: what is wider has another reason (latent attention)
        return slots

    def parts(width: int) -> tuple[int, ...]:
        return (queries, (width - queries) // 2, (width - queries) // 2) if width > queries else (width,)

    return [replace(slot, layout=Layout(parts(slot.layout.parts[0]))) for slot in slots] if queries else slots


def changed_modules(base: PreTrainedModel, other: PreTrainedModel) -> list[str]:
    """Return the names of modules whose integer attributes differ between two models."""
    others = dict(other.named_modules())
    return [
        name
        for name, module in base.named_modules()
        if name in others and name and integer_attributes(module) != integer_attributes(others[name])
    ]


def same_slots(one: Axis, other: Axis) -> bool:
    """Return whether two axes move the same dimensions of the same tensors."""
    return bool(one.slots) and one.slots == other.slots
