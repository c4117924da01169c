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
    """How many heads a module says it has; 0 where it says none."""
    return next((value for name, value in integer_attributes(module).items() if name in QUERY_HEADS), 0)


def model_with_whole_heads(
    config: PretrainedConfig, base: PreTrainedModel, other: PreTrainedModel | None, path: str, size: int
) -> PreTrainedModel | None:
    """Where something has the size of a head that falls with the hidden width (rotations, norms or positions inside
    heads), or the config allows no such head, the model with fewer heads of the same size, if that helps; else None."""
    width = size_in(config, path)
    if other is not None and not (_odd(base, other, width) or _rotated(base, other) or _torn(base, other)):
        return None
    try:
        found = meta_model(resized(config, path, size, whole_heads=True), type(base))
    except Exception:  # a size the architecture does not allow may raise anything
        return None
    holder = locate_field(config, path)[0].to_dict()
    told = ((kv, holder[queries]) for queries in QUERIES_OF.values() if (kv := shared_kv_groups(holder, queries)))
    groups, heads = next(told, (0, 1))
    shared = (width or 0) * groups // heads
    return None if _odd(base, found, width, shared) else found


def _odd(base: PreTrainedModel, other: PreTrainedModel, size: int | None, shared: int = 0) -> bool:
    """Whether a parameter or buffer changes along a dimension that is no multiple of `size`, nor `shared` (the keys of
    query heads that share them)."""
    after = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    for name, tensor in (*base.named_parameters(), *base.named_buffers()):
        changed = after[name].shape if name in after else tensor.shape
        if len(changed) == tensor.ndim and any(
            one not in (new, shared) and one % (size or one) for one, new in zip(tensor.shape, changed, strict=True)
        ):
            return True
    return False


def _rotated(base: PreTrainedModel, other: PreTrainedModel) -> bool:
    """Whether maps into heads change, in a stack of blocks that has rotations."""
    after = tensor_shapes(other)
    changed = {
        stack_of(block_of(name))
        for name, tensor in base.named_parameters()
        if tensor.ndim == 2 and all(one != new for one, new in zip(tensor.shape, after.get(name, ()), strict=False))
    }
    places = {stack_of(stack) for stack in changed - {""}}
    rotations = [name for name, _ in base.named_buffers() if name.endswith(ROTATIONS)]
    return any(
        not place or name.startswith(f"{place}.") or f"{place}.".startswith(enclosing_prefix(name))
        for place in places
        for name in rotations
    )


def _torn(base: PreTrainedModel, other: PreTrainedModel) -> bool:
    """Whether in a part of a block a norm changes, and what it takes does not (OLMoE's queries): that would not run."""
    before, after = tensor_shapes(base), tensor_shapes(other)
    inside = {name: part for name in before if (part := stack_of(stack_of(name))) not in ("", block_of(name))}
    given: dict[str, set[int]] = {}
    for name, part in inside.items():
        shape = before[name]
        if len(shape) == 2 and after.get(name, shape)[1] != shape[1] and after[name][0] == shape[0]:
            given.setdefault(part, set()).add(shape[0])
    norms = {name: part for name, part in inside.items() if len(before[name]) == 1 and after.get(name) != before[name]}
    return any(before[name][0] in given.get(part, ()) for name, part in norms.items())


def with_head_slots(axis: Axis, attention: Mapping[str, int], base: PreTrainedModel) -> Axis:
    """Tell what lies between an attention's maps from the stream that they read and write.

    Where no field says the size of a head (BERT), both are as wide as the hidden width; but the one in the middle
    belongs to each attention alone, and its heads. Query, key and value come first, the output map last; the proof
    decides whether that is so.

    Args:
        axis: the hidden width.
        attention: modules that know the number of heads (of key-value heads, where these are shared), with it.
        base: the model on the meta device.
    """
    width: dict[str, int] = {}  # of each map between streams, how many times what it reads it writes
    wide: dict[str, int] = {}  # and how many widths it reads (Swin's later stages are wider than the config says)
    for name, parameter in base.named_parameters():
        dims = {slot.dim: slot for slot in axis.slots if slot.name == name}
        wrote = output_dim(base, name)
        if parameter.ndim == 2 and len(dims) == 2 and dims[1 - wrote].layout.share == 1:
            if dims[wrote].layout.share > 1 and not axis.whole_heads:
                continue
            wide[name] = sum(dims[1 - wrote].layout.parts)
            width[name] = sum(dims[wrote].layout.parts) // wide[name]
    inner: dict[tuple[str, int | None], Slot] = {}
    for module, heads in attention.items():
        for scope in enclosing_modules(module):
            maps = [name for name in width if name.startswith(f"{scope}.")]
            total = sum(width[name] for name in maps)
            if total > QKVO + THREE:
                break
            if total >= QKVO and total % THREE == 1:
                times = wide[maps[0]]
                if heads % times == 0:
                    found = _inside(axis, scope, maps, width, heads // times, times, base)
                    inner |= {(slot.name, slot.dim): slot for slot in found}
                break
            if scope.rpartition(".")[2].isdigit():  # around a block are others, and all their maps together say nothing
                break
    return replace(axis, slots=tuple(inner.get((slot.name, slot.dim), slot) for slot in axis.slots))


def _inside(
    axis: Axis, scope: str, maps: list[str], width: dict[str, int], heads: int, times: int, base: PreTrainedModel
) -> Iterator[Slot]:
    """The slots of one attention whose units are no longer the stream's; a unit has `times` places in both."""
    unlike = [name for name in maps if not {*"qkv"} & {*leaf_name(name)}]
    answer = unlike[0] if len(unlike) == 1 else maps[-1]  # Kimi's vision makes its output map first
    asking = [name for name in maps if name != answer]
    apart, block = (1, axis.size // heads) if axis.whole_heads else (heads, 1)
    beside = {stack_of(stack_of(name)) for name in asking}  # a norm here is over all heads (OLMoE)
    for slot in axis.slots:
        name = f"{slot.name.removesuffix('bias')}weight" if slot.name.endswith("bias") else slot.name  # or in_proj_bias
        wrote = slot.name not in width or slot.dim == output_dim(base, slot.name)
        if name in asking and wrote:
            by_head = slot.layout.share > 1 or (width[name] > 1 and leaf_name(name) in BY_HEAD)
            layout = Layout((1,) * width[name] * times, heads if by_head else 1, slot.layout.share)
            scaled = (width[name] == THREE or asks(name)) and base.config.model_type not in UNSCALED
            power = 0.5 if scaled and not axis.whole_heads else 0.0
            yield replace(slot, group=scope, layout=layout, heads=apart, block=block, power=power, powered=times)
            continue
        normed = axis.whole_heads and stack_of(stack_of(slot.name)) in beside and is_norm(owner_of(base, slot.name))
        if normed or (slot.name == answer and not wrote):
            yield replace(slot, group=scope, heads=apart, block=block)
