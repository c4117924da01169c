"""Reads the slots of an axis, and their layouts, off the shapes of two models that differ in one size."""

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


def slots_of(
    base: PreTrainedModel, probe: PreTrainedModel, size: int | None, probe_size: int, kind: AxisKind
) -> list[Slot]:
    """Return the tensor dimensions in which two models differ; for depth, the tensors that only `base` has.

    Args:
        base: the model on the meta device.
        probe: the same with another value in one config field.
        size: the value of the field in `base`; None where the config leaves it to the model.
        probe_size: its value in `probe`.
        kind: of the axis.
    """
    before, after = tensor_shapes(base), tensor_shapes(probe)
    if kind.is_depth:
        blocks = all_blocks(before)
        changed = blocks ^ all_blocks(after)
        outer = {stack_of(block) for block in changed if changed.isdisjoint(enclosing_modules(stack_of(block)))}
        counts = Counter(map(stack_of, blocks))
        stacks = {stack for stack in outer if counts[stack] == size}  # others have a count of their own
        return [Slot(key, None, stack) for key in before for stack in stacks if key.startswith(f"{stack}.")]
    slots: list[Slot] = []
    for key, shape in before.items():
        for dim in range(len(shape)) if key in after and len(shape) == len(after[key]) else ():
            if shape[dim] == after[key][dim]:
                continue
            layout = _layout(shape[dim], size, after[key][dim], probe_size, kind)
            if dim > 0 and kind.inside_experts and _holds_experts(base, key):
                slots += _slots_of_experts(base, key, dim - 1, layout)
            else:
                group = EVERYWHERE if kind.is_shared else block_of(key)
                slots.append(Slot(key, dim, group, reads_units(base, key, dim), layout))
    slots = _interleaved(slots) if kind.inside_experts else slots
    slots = _fused(slots) if kind.takes_queries else slots
    return _with_shared_bias(slots, base) if kind.is_heads else slots


def _interleaved(slots: list[Slot]) -> list[Slot]:
    """Change fused parts to consecutive positions in groups whose consuming layer has several inputs for each unit."""
    fused = [slot for slot in slots if len(slot.layout.parts) > 1 and slot.entry is None]
    groups = {slot.group for slot in fused if slot.consumes}
    return [replace(s, layout=Layout((len(s.layout.parts),))) if s.group in groups else s for s in slots]


def _with_shared_bias(slots: list[Slot], base: PreTrainedModel) -> list[Slot]:
    """Put all blocks of a stack in one group where one of them holds the position biases of all heads (T5)."""
    groups = {slot.group for slot in slots}
    without = groups - {slot.group for slot in slots if isinstance(owner_of(base, slot.name), nn.Embedding)}
    shared = {stack_of(group) for group in groups - without} & {stack_of(group) for group in without}
    return [replace(slot, group=stack_of(slot.group)) if stack_of(slot.group) in shared else slot for slot in slots]


def _holds_experts(model: PreTrainedModel, key: str) -> bool:
    """Return whether a parameter has one entry for each expert: its module, no convolution, has a stack of matrices."""
    owner = model.get_submodule(key.rpartition(".")[0])
    convolution = isinstance(owner, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return not convolution and any(p.ndim == 3 for p in owner.parameters(recurse=False))


def _slots_of_experts(model: PreTrainedModel, key: str, dim: int, layout: Layout) -> list[Slot]:
    """Return one slot for each expert in a stacked parameter.

    Attributes of the module say whether gate and up are interleaved (`is_concatenated`), and whether its weights are
    transposed (`is_transposed`).

    Args:
        model: on the meta device.
        key: name of the parameter.
        dim: the dimension of the units within one expert.
        layout: of the units, as if gate and up lay one after the other.
    """
    owner: Any = model.get_submodule(key.rpartition(".")[0])
    stack = model.get_parameter(key)
    if not getattr(owner, "is_concatenated", True) and len(layout.parts) > 1:
        layout = Layout((len(layout.parts),))
    consumes = stack.ndim == 3 and dim == (0 if getattr(owner, "is_transposed", False) else 1)
    module_name = key.rpartition(".")[0]
    return [Slot(key, dim, f"{module_name}.{entry}", consumes, layout, entry) for entry in range(len(stack))]


def _layout(length: int, size: int | None, probe_length: int, probe_size: int, kind: AxisKind) -> Layout:
    """Return the layout that two lengths of a dimension imply for two sizes of an axis.

    Several positions of an FFN or hidden unit are taken to lie in fused parts, those of a head to be consecutive. A
    dimension that is a whole number of times shorter than the hidden width holds a share of it. Verification shows
    whether that is so.

    Args:
        length: of the dimension in the model.
        size: of the axis in the model; None where the config does not state it.
        probe_length: of the dimension in the other model.
        probe_size: of the axis in the other model.
        kind: of the axis.
    """
    share = (size or 0) // length
    if kind.is_residual and share > 1 and length * share == size and probe_length * share == probe_size:
        return Layout(share=share)
    per_unit = probe_length // probe_size if size is None else (length - probe_length) // (size - probe_size)
    return Layout((1,) * per_unit if per_unit > 1 and kind.is_fused else (max(per_unit, 1),))


def _fused(slots: list[Slot]) -> list[Slot]:
    """Split the layout of a layer that computes queries, keys and values into these three parts.

    It is the only one of its block, and wider than the queries of a key-value group, which are as wide as the inputs of
    the output layer.
    """
    queries = next((slot.layout.parts[0] for slot in slots if slot.consumes), 0)
    blocks = Counter(slot.group for slot in slots if not slot.consumes and slot.name.endswith("weight"))
    if max(blocks.values(), default=0) > 1:  # with several layers, a wider one has another reason (latent attention)
        return slots

    def parts(width: int) -> tuple[int, ...]:
        return (queries, (width - queries) // 2, (width - queries) // 2) if width > queries else (width,)

    return [replace(slot, layout=Layout(parts(slot.layout.parts[0]))) for slot in slots] if queries else slots


def changed_modules(base: PreTrainedModel, probe: PreTrainedModel) -> list[str]:
    """Return the names of modules whose integer attributes differ between two models."""
    probed = dict(probe.named_modules())
    return [
        name
        for name, module in base.named_modules()
        if name in probed and name and integer_attributes(module) != integer_attributes(probed[name])
    ]


def same_slots(first: Axis, second: Axis) -> bool:
    """Return whether two axes touch the same dimensions of the same tensors."""
    return bool(first.slots) and first.slots == second.slots
