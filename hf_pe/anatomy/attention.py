"""Separates attention-internal dimensions (per head) from residual-stream dimensions of the same size."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.anatomy.axis import Axis, Layout, Slot
from hf_pe.anatomy.config_edit import locate_field, resized, shared_kv_groups, size_in
from hf_pe.anatomy.fields import BY_HEAD, QKVO, QUERIES_OF, QUERY_HEADS, ROTATIONS, THREE, UNSCALED
from hf_pe.anatomy.meta import meta_model
from hf_pe.anatomy.module_names import (
    asks,
    block_of,
    enclosing_modules,
    enclosing_prefix,
    integer_attributes,
    is_norm,
    leaf_name,
    output_dim,
    owner_of,
    stack_of,
    tensor_shapes,
)


def heads_of(module: nn.Module) -> int:
    """Return the number of heads that a module's attributes state; 0 where they state none."""
    return next((value for name, value in integer_attributes(module).items() if name in QUERY_HEADS), 0)


def model_with_whole_heads(
    config: PretrainedConfig, base: PreTrainedModel, probe: PreTrainedModel | None, path: str, size: int
) -> PreTrainedModel | None:
    """Return the model with another hidden width and fewer heads of the same size, where heads must keep their size.

    They must where something as large as a head would change with it (rotations, norms or positions inside heads), or
    where no model can be built with narrower heads.

    Args:
        config: of the model.
        base: the model on the meta device.
        probe: the model with hidden width `size` and narrower heads; None where it cannot be built.
        path: of the field of the hidden width.
        size: the other hidden width.

    Returns:
        None where heads may become narrower, or where fewer heads do not help.
    """
    width = size_in(config, path)
    if probe is not None and not (
        _has_odd_change(base, probe, width) or _changes_rotated_heads(base, probe) or _splits_a_norm(base, probe)
    ):
        return None
    try:
        with_fewer_heads = meta_model(resized(config, path, size, whole_heads=True), type(base))
    except Exception:  # a size the architecture does not allow may raise anything
        return None
    holder = locate_field(config, path)[0].to_dict()
    counts = ((kv, holder[queries]) for queries in QUERIES_OF.values() if (kv := shared_kv_groups(holder, queries)))
    groups, heads = next(counts, (0, 1))
    key_width = (width or 0) * groups // heads
    return None if _has_odd_change(base, with_fewer_heads, width, key_width) else with_fewer_heads


def _has_odd_change(base: PreTrainedModel, probe: PreTrainedModel, width: int | None, key_width: int = 0) -> bool:
    """Return whether a tensor changes along a dimension that is neither a multiple of `width` nor `key_width`.

    Args:
        base: the model.
        probe: the model with another hidden width.
        width: the hidden width of `base`.
        key_width: the width of all its keys together, where query heads share them.
    """
    after = {**dict(probe.named_parameters()), **dict(probe.named_buffers())}
    for name, tensor in (*base.named_parameters(), *base.named_buffers()):
        shape = after[name].shape if name in after else tensor.shape
        if len(shape) == tensor.ndim and any(
            length not in (new, key_width) and length % (width or length)
            for length, new in zip(tensor.shape, shape, strict=True)
        ):
            return True
    return False


def _changes_rotated_heads(base: PreTrainedModel, probe: PreTrainedModel) -> bool:
    """Return whether linear layers change in both dimensions, in a stack of blocks that has rotary embeddings."""
    after = tensor_shapes(probe)
    changed = {
        stack_of(block_of(name))
        for name, tensor in base.named_parameters()
        if tensor.ndim == 2 and all(old != new for old, new in zip(tensor.shape, after.get(name, ()), strict=False))
    }
    parents = {stack_of(stack) for stack in changed - {""}}
    rotations = [name for name, _ in base.named_buffers() if name.endswith(ROTATIONS)]
    return any(
        not parent or name.startswith(f"{parent}.") or f"{parent}.".startswith(enclosing_prefix(name))
        for parent in parents
        for name in rotations
    )


def _splits_a_norm(base: PreTrainedModel, probe: PreTrainedModel) -> bool:
    """Return whether a norm inside a block changes although the layer that it follows does not (OLMoE's queries)."""
    before, after = tensor_shapes(base), tensor_shapes(probe)
    inside = {name: part for name in before if (part := stack_of(stack_of(name))) not in ("", block_of(name))}
    unchanged_outputs: dict[str, set[int]] = {}
    for name, part in inside.items():
        shape = before[name]
        if len(shape) == 2 and after.get(name, shape)[1] != shape[1] and after[name][0] == shape[0]:
            unchanged_outputs.setdefault(part, set()).add(shape[0])
    norms = {name: part for name, part in inside.items() if len(before[name]) == 1 and after.get(name) != before[name]}
    return any(before[name][0] in unchanged_outputs.get(part, ()) for name, part in norms.items())


def with_head_slots(axis: Axis, attention: Mapping[str, int], base: PreTrainedModel) -> Axis:
    """Give each attention's inner dimensions a group of their own, apart from the residual stream's.

    Where no field states the size of a head (BERT), queries, keys and values together are as wide as the hidden width,
    so that shapes alone do not tell them from the residual stream. But they belong to one attention and to its heads.
    The layers of query, key and value are assumed to be built first and the output layer last; verification shows
    whether that is so.

    Args:
        axis: the hidden width.
        attention: names of modules with their number of heads (of key-value heads, where query heads share them).
        base: the model on the meta device.
    """
    fused: dict[str, int] = {}  # by linear layer from stream to stream: its outputs as a multiple of its inputs
    widths: dict[str, int] = {}  # and its inputs as a multiple of the config's width (Swin's later stages are wider)
    for name, parameter in base.named_parameters():
        dims = {slot.dim: slot for slot in axis.slots if slot.name == name}
        output = output_dim(base, name)
        if parameter.ndim == 2 and len(dims) == 2 and dims[1 - output].layout.share == 1:
            if dims[output].layout.share > 1 and not axis.whole_heads:
                continue
            widths[name] = sum(dims[1 - output].layout.parts)
            fused[name] = sum(dims[output].layout.parts) // widths[name]
    inner: dict[tuple[str, int | None], Slot] = {}
    for module, heads in attention.items():
        for scope in enclosing_modules(module):
            layers = [name for name in fused if name.startswith(f"{scope}.")]
            total = sum(fused[name] for name in layers)
            if total > QKVO + THREE:
                break
            if total >= QKVO and total % THREE == 1:
                times = widths[layers[0]]
                if heads % times == 0:
                    slots = _inner_slots(axis, scope, layers, fused, heads // times, times, base)
                    inner |= {(slot.name, slot.dim): slot for slot in slots}
                break
            if scope.rpartition(".")[2].isdigit():  # what contains a block has other blocks, with layers of their own
                break
    return replace(axis, slots=tuple(inner.get((slot.name, slot.dim), slot) for slot in axis.slots))


def _inner_slots(
    axis: Axis, scope: str, layers: list[str], fused: dict[str, int], heads: int, times: int, base: PreTrainedModel
) -> Iterator[Slot]:
    """Yield the slots of one attention whose units belong to it and not to the residual stream.

    Args:
        axis: the hidden width.
        scope: the name of the attention.
        layers: weights of its linear layers, in the order in which they were built.
        fused: outputs of each as a multiple of its inputs: 3 for fused query, key and value.
        heads: number of heads for each width of the config.
        times: positions that a unit has in each dimension.
        base: the model on the meta device.
    """
    unlike_qkv = [name for name in layers if not {*"qkv"} & {*leaf_name(name)}]
    output_layer = unlike_qkv[0] if len(unlike_qkv) == 1 else layers[-1]  # Kimi's vision builds its output layer first
    input_layers = [name for name in layers if name != output_layer]
    subgroups, chunk = (1, axis.size // heads) if axis.whole_heads else (heads, 1)
    parents = {stack_of(stack_of(name)) for name in input_layers}  # a norm inside one runs over all heads (OLMoE)
    for slot in axis.slots:
        name = f"{slot.name.removesuffix('bias')}weight" if slot.name.endswith("bias") else slot.name  # or in_proj_bias
        is_output = slot.name not in fused or slot.dim == output_dim(base, slot.name)
        if name in input_layers and is_output:
            by_head = slot.layout.share > 1 or (fused[name] > 1 and leaf_name(name) in BY_HEAD)
            layout = Layout((1,) * fused[name] * times, heads if by_head else 1, slot.layout.share)
            is_scaled = (fused[name] == THREE or asks(name)) and base.config.model_type not in UNSCALED
            slot = replace(slot, layout=layout, powered_parts=times)
            power = 0.5 if is_scaled and not axis.whole_heads else 0.0
            yield replace(slot, group=scope, subgroups=subgroups, chunk=chunk, power=power)
            continue
        in_norm = axis.whole_heads and stack_of(stack_of(slot.name)) in parents and is_norm(owner_of(base, slot.name))
        if in_norm or (slot.name == output_layer and not is_output):
            yield replace(slot, group=scope, subgroups=subgroups, chunk=chunk)
