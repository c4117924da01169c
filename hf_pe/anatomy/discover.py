"""Finds a model's axes by difference: change one config field, build again on the meta device, compare.

Nothing here knows an architecture. The table below only says what people call a field.
"""

import copy
import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_pe.anatomy.axis import Anatomy, Axis, Layout, Slot
from hf_pe.anatomy.custom_modules import built
from hf_pe.anatomy.numbered import by_layer, keep_layers_, renumber_

HEADS = ("heads", "kv_groups")
"""The axes whose units are heads, alone or with their key-value heads."""

AXIS_OF_FIELD = {
    "intermediate_size": "ffn",
    "ffn_dim": "ffn",
    "ffn_hidden_size": "ffn",
    "d_ff": "ffn",
    "n_inner": "ffn",
    "hidden_dim": "ffn",
    "d_inner": "ffn",
    "mlp_dim": "ffn",
    "dff": "ffn",
    "dim_ff": "ffn",
    "feed_forward_size": "ffn",
    "block_ff_dim": "ffn",
    "encoder_ffn_dim": "ffn",
    "decoder_ffn_dim": "ffn",
    "num_hidden_layers": "layers",
    "num_layers": "layers",
    "layers": "layers",
    "num_decoder_layers": "layers",
    "n_layers": "layers",
    "n_layer": "layers",
    "encoder_layers": "layers",
    "decoder_layers": "layers",
    "encoder_num_hidden_layers": "layers",
    "decoder_num_hidden_layers": "layers",
    "depth": "layers",
    "num_blocks": "layers",
    "num_attention_heads": "heads",
    "num_heads": "heads",
    "n_heads": "heads",
    "n_head": "heads",
    "attention_heads": "heads",
    "encoder_attention_heads": "heads",
    "decoder_attention_heads": "heads",
    "encoder_num_attention_heads": "heads",
    "num_encoder_attention_heads": "heads",
    "num_decoder_attention_heads": "heads",
    "decoder_num_attention_heads": "heads",
    "num_key_value_heads": "kv_groups",
    "hidden_size": "hidden",
    "d_model": "hidden",
    "n_embd": "hidden",
    "emb_dim": "hidden",
    "dim": "hidden",
    "embed_dim": "hidden",
    "vocab_size": "vocabulary",
    "n_words": "vocabulary",
    "num_local_experts": "experts",
    "num_experts": "experts",
    "n_routed_experts": "experts",
    "moe_intermediate_size": "expert_ffn",
    "expert_ffn_hidden_size": "expert_ffn",
}

DEPTHS = ("depths", "depth", "stage_num_blocks", "n_attn_blocks", "blocks_per_stage")
"""Fields that list the layers of each stage (ConvNeXt, Swin, ResNet): an axis for each entry."""

STAGES = ("hidden_sizes", "embed_dims", "embed_dim")
"""Fields that list the hidden width of each stage (ConvNeXt, ResNet, CvT): an axis for each entry."""

RATIOS = ("mlp_ratio", "mlp_ratios")
"""Fields that say the FFN width as a multiple of the hidden one; lists say it stage by stage."""

WIDTHS = ("embed_dim", "embed_dims", "hidden_size", "hidden_sizes")
"""The hidden widths that they multiply. Where one ratio stands for stages of several widths, the first is meant: a unit
of a wider stage is more channels."""

QUERIES_OF = {"num_key_value_heads": "num_attention_heads"}
"""Fields that count key-value heads, and the one that moves along: each keeps its share of query heads."""

FOLLOWERS = {"vocab_size": ("decoder_vocab_size",), "hidden_size": ("embedding_size", "word_embed_proj_dim")}
"""Fields that say the same size again, and move along where they do."""

HEAD_SIZES = ("head_dim", "d_kv")
"""Fields that say the size of a head. Where a config has none, `head_dim` is written down before heads or width go."""

EVERYWHERE = "model"
"""The one group of an axis whose units all blocks share: hidden width, vocabulary."""

SHARED = ("hidden", "vocabulary")
"""The axes with that one group."""

UNSCALED = ("gpt_neo",)
"""Types that do not divide their scores by the root of a head's size; neither shapes nor attributes tell."""

HEADS_BY_ROOT = {
    "longt5": "scale_decoder_outputs",
    "switch_transformers": "tie_word_embeddings",
    "t5": "scale_decoder_outputs",
    "udop": "tie_word_embeddings",
    "umt5": "tie_word_embeddings",
}
"""Types whose language models divide what their output head reads by the root of the width, as long as this field of
the config is true; the division stands in their forward, where shapes do not tell."""

QKVO, THREE = 4, 3
"""Maps between the hidden width and itself in an attention: query, key, value and output, some of them fused. Some have
three more of the first kind (Longformer's global ones)."""

ROTATIONS = ("inv_freq", "embed_positions")
"""How buffers end that turn queries and keys."""

BY_HEAD = ("query_key_value",)
"""Maps in which query, key and value lie head by head; elsewhere they lie one after the other. Shapes can't tell."""


@dataclass(frozen=True)
class Architecture:
    """A config and a class as something that equals another of the same content: what is found once is known."""

    model_class: type[PreTrainedModel]
    text: str
    config: PretrainedConfig = dataclasses.field(compare=False, repr=False)

    @classmethod
    def of(cls, config: PretrainedConfig, model_class: type[PreTrainedModel]) -> "Architecture":
        """Holds a copy: the original may change."""
        return cls(model_class, config.to_json_string(use_diff=False), copy.deepcopy(config))


def discover(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> Anatomy:
    """Find the axes of `model_class` built from `config`, without weights.

    Raises:
        ValueError: the model cannot be built from its config on the meta device.
    """
    return _discover(Architecture.of(config, model_class))


@functools.lru_cache(maxsize=256)
def _discover(architecture: "Architecture") -> Anatomy:
    config, model_class = architecture.config, architecture.model_class
    base = skeleton(config, model_class)
    found: list[Axis] = []
    for path, name in _fields(config):
        axis = _axis(config, model_class, base, path, name)
        if axis is None or any(_same_tensors(axis, other) for other in found):
            continue
        if axis.kind != "hidden" or all(other.name != axis.name for other in found):
            found.append(axis)
    heads, groups = ({m: axis.size for axis in found if axis.kind == kind for m in axis.modules} for kind in HEADS)
    attention = {m: size for m, size in heads.items() if m not in groups} | groups  # what comes later counts
    for name, module in base.named_modules():
        if told := _heads(module):
            attention.setdefault(name, told)
    for number, axis in enumerate(found):
        if axis.kind == "hidden":
            found[number] = _with_heads(axis, attention, base)
    return Anatomy(tuple(found), sum(p.numel() for p in base.parameters()))


def _heads(module: nn.Module) -> int:
    """How many heads a module says it has; 0 where it says none."""
    return next((value for name, value in _integers(module).items() if AXIS_OF_FIELD.get(name) == "heads"), 0)


def skeleton(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """Build `model_class` on the meta device: shapes and attributes, no memory. `config` is not changed."""
    with torch.device("meta"), _Unfilled():
        model = built(config, model_class)
    model.eval()
    return model


class _Unfilled(TorchFunctionMode):
    """Leaves out what `torch.nn.init` would do to tensors that hold nothing: a third of a skeleton's time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def resized(
    config: PretrainedConfig,
    path: str,
    size: int,
    kept: list[int] | None = None,
    *,
    keep_head_size: bool = True,
    whole_heads: bool = False,
) -> PretrainedConfig:
    """Return a copy of `config` with the field at dotted `path` set to `size`.

    Lists in the same (sub)config with one entry per unit, such as `layer_types`, keep the entries of `kept`
    (default: the first `size`, the last repeated where it grows). Heads keep their size, also where the hidden width
    changes (unless not `keep_head_size`: nothing is said of it; with `whole_heads` they become fewer as it falls);
    key-value heads take along the query heads that read them. Token ids become the places of `kept`.

    Raises:
        ValueError: each token takes more experts, or a token that the config names is not kept.
    """
    new = copy.deepcopy(config)
    holder, field, entry = _place(new, path)
    before = getattr(holder, field)
    if entry or field in RATIOS:
        said = _ratio(holder, entry, size) if field in RATIOS else size
        setattr(holder, field, [said if i == int(entry) else each for i, each in enumerate(before)] if entry else said)
        return type(config).from_dict(new.to_dict())
    if AXIS_OF_FIELD[field] == "vocabulary" and kept is not None:
        for part in {id(new): new, id(holder): holder}.values():
            renumber_(part, kept)
    kept = [min(i, (before or size) - 1) for i in range(size)] if kept is None else kept
    for follower in FOLLOWERS.get(field, ()):
        if getattr(holder, follower, None) == before:
            setattr(holder, follower, size)
    last = getattr(holder, "hidden_size", None) if field == "embed_dim" and hasattr(holder, "depths") else None
    if isinstance(last, int) and last % before == 0:
        holder.hidden_size = last // before * size  # Swin's last stage
    if AXIS_OF_FIELD[field] == "layers":
        keep_layers_(holder, before or 0, kept)
    if AXIS_OF_FIELD[field] in ("heads", "kv_groups", "hidden"):
        queries = "num_attention_heads" if AXIS_OF_FIELD[field] == "hidden" else QUERIES_OF.get(field, field)
        heads = _asked(holder, queries)
        told = any(_asked(holder, name) or vars(holder).get(name) for name in HEAD_SIZES)
        one = isinstance(heads, int) and heads > 0
        if one and keep_head_size and not whole_heads and not told and hasattr(holder, "hidden_size"):
            holder.head_dim = holder.hidden_size // heads
        if whole_heads:
            _fewer_heads_(holder, size, before or size)
        if AXIS_OF_FIELD[field] != "hidden":
            setattr(holder, queries, (heads or 0) * size // (before or 1))
    if AXIS_OF_FIELD[field] == "experts":
        _require_routable(holder, size)
    setattr(holder, field, size)
    return type(config).from_dict(new.to_dict())  # what the saved config.json will say, not more


def size_in(config: Any, path: str) -> int | None:
    """Return how many units the field at dotted `path` says; None where the config leaves it to the model."""
    holder, field, entry = _place(config, path)
    value = getattr(holder, field)
    value = value[int(entry)] if entry else value
    return int(_width(holder, entry) * value) if field in RATIOS else value


def _asked(holder: Any, name: str) -> Any:
    """A field, by any of its names; None where it is not there, or differs between layers (Gemma 4)."""
    try:
        return getattr(holder, name, None)
    except Exception:  # of a type of its own
        return None


def _fewer_heads_(holder: Any, size: int, before: int) -> None:
    """As many heads less as the hidden width falls."""
    for field, heads in holder.to_dict().items():
        if AXIS_OF_FIELD.get(field) in HEADS and isinstance(heads, int):
            if heads * size % before:
                raise ValueError(f"{heads} heads of a width of {before} are no whole number of {size}")
            setattr(holder, field, heads * size // before)


def _place(config: Any, path: str) -> tuple[Any, str, str]:
    """The part of a config that a dotted path leads to, the field there, and the entry where that is a list."""
    listed, _, entry = path.rpartition(".")
    *parents, field = (listed if entry.isdigit() else path).split(".")
    for parent in parents:
        config = getattr(config, parent)
    return config, field, entry if entry.isdigit() else ""


def part_of(config: PretrainedConfig, path: str) -> Any:
    """Return the config, or the part of it, that holds the field at dotted `path`."""
    return _place(config, path)[0]


def _width(holder: Any, entry: str) -> int:
    """The hidden width that a ratio multiplies, of the stage `entry` where it is one of a list."""
    told = next((width for name in WIDTHS if (width := getattr(holder, name, None))), 0)
    return int(told[int(entry or 0)] if isinstance(told, (list, tuple)) else told)


def _ratio(holder: Any, entry: str, size: int) -> float:
    """What makes `size` units, whether models round or cut off, in later stages too; whole where it can be."""
    width = _width(holder, entry)
    return (size + 2**-6) / width if size % width else size // width


def _require_routable(holder: Any, size: int) -> None:
    for name in ("num_experts_per_tok", "moe_topk", "top_k_experts"):
        if (getattr(holder, name, None) or 0) > size:
            raise ValueError(f"each token takes {getattr(holder, name)} experts, so there cannot be {size}")
    if size % (getattr(holder, "n_group", None) or 1):
        raise ValueError(f"{size} experts do not make {holder.n_group} groups of the same size")


def _fields(config: PretrainedConfig, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted path, axis name) of every known size field, sub-configs included."""
    values, tower = config.to_dict(), f"{prefix.removesuffix('.').removesuffix('_config')}." if prefix else ""
    for field in values:
        sub = vars(config).get(field)  # asking for a field that differs between layers (Gemma 4) raises
        if isinstance(sub, PretrainedConfig):
            yield from _fields(sub, f"{prefix}{field}.")
        elif values[field] is not None and _groups(values, field) == values[field]:
            continue  # each key-value head has a query head of its own: they go together
        elif by_layer(values.get("per_layer_config")) and any(
            field in each for each in values["per_layer_config"].values()
        ):
            continue  # one number does not say it
        elif field in AXIS_OF_FIELD and (values[field] is None or isinstance(values[field], int)):
            yield prefix + field, f"{tower}{AXIS_OF_FIELD[field]}"
        elif field in (*DEPTHS, *RATIOS, *STAGES) and isinstance(values[field], (list, tuple)):
            kind = "ffn" if field in RATIOS else "hidden" if field in STAGES else "layers"
            for stage, count in enumerate(values[field]):
                if isinstance(count, int) or field in RATIOS:
                    yield f"{prefix}{field}.{stage}", f"{tower}stage{stage + 1}.{kind}"
        elif field in RATIOS and isinstance(values[field], (int, float)):
            yield prefix + field, f"{tower}ffn"


def _groups(values: dict[str, Any], field: str) -> int | None:
    """Where `field` counts the query heads that key-value heads are shared by: how many key-value heads."""
    told = (values.get(groups) for groups, queries in QUERIES_OF.items() if queries == field)
    groups, heads = next(told, None), values.get(field)
    shared = isinstance(groups, int) and isinstance(heads, int) and groups > 0 and heads % groups == 0
    return groups if shared else None


def _axis(
    config: PretrainedConfig, model_class: type[PreTrainedModel], base: PreTrainedModel, path: str, name: str
) -> Axis | None:
    value = size_in(config, path)
    for size in _probes(value, name):
        try:
            other = skeleton(resized(config, path, size), model_class)
        except Exception:  # a size the architecture does not allow may raise anything: try the next
            other = None
        whole = _with_whole_heads(config, base, other, path, size) if name.endswith("hidden") else None
        other = whole or other
        if other is None or (name.endswith("hidden") and _shapes(other).keys() != _shapes(base).keys()):
            continue  # as wide as its neighbour, a stage of ResNet has no shortcut: that is another model
        slots = _slots(base, other, value, size, name)
        modules = _moved_attributes(base, other)
        if slots or modules:
            axis = _finish(config, base, path, name, value, size, slots, modules)
            axis = replace(axis, whole_heads=whole is not None)
            holder, field, _ = _place(config, path)
            groups = _groups(holder.to_dict(), field)
            if groups:  # each loses as many of its query heads
                axis = replace(axis, slots=tuple(replace(slot, heads=groups) for slot in axis.slots))
            return _with_scales(axis, base, other, size) if axis.kind == "hidden" else axis
    return None


def _with_whole_heads(
    config: PretrainedConfig, base: PreTrainedModel, other: PreTrainedModel | None, path: str, size: int
) -> PreTrainedModel | None:
    """Where something has the size of a head that falls with the hidden width (rotations, norms or positions inside
    heads), or the config allows no such head, the model with fewer heads of the same size, if that helps; else None."""
    width = size_in(config, path)
    if other is not None and not (_odd(base, other, width) or _rotated(base, other) or _torn(base, other)):
        return None
    try:
        found = skeleton(resized(config, path, size, whole_heads=True), type(base))
    except Exception:  # a size the architecture does not allow may raise anything
        return None
    holder = _place(config, path)[0].to_dict()
    told = ((kv, holder[queries]) for queries in QUERIES_OF.values() if (kv := _groups(holder, queries)))
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
    after = _shapes(other)
    changed = {
        _stack(_block(name))
        for name, tensor in base.named_parameters()
        if tensor.ndim == 2 and all(one != new for one, new in zip(tensor.shape, after.get(name, ()), strict=False))
    }
    places = {_stack(stack) for stack in changed - {""}}
    rotations = [name for name, _ in base.named_buffers() if name.endswith(ROTATIONS)]
    return any(
        not place or name.startswith(f"{place}.") or f"{place}.".startswith(_beside(name))
        for place in places
        for name in rotations
    )


def _torn(base: PreTrainedModel, other: PreTrainedModel) -> bool:
    """Whether in a part of a block a norm changes, and what it takes does not (OLMoE's queries): that would not run."""
    before, after = _shapes(base), _shapes(other)
    inside = {name: part for name in before if (part := _stack(_stack(name))) not in ("", _block(name))}
    given: dict[str, set[int]] = {}
    for name, part in inside.items():
        shape = before[name]
        if len(shape) == 2 and after.get(name, shape)[1] != shape[1] and after[name][0] == shape[0]:
            given.setdefault(part, set()).add(shape[0])
    norms = {name: part for name, part in inside.items() if len(before[name]) == 1 and after.get(name) != before[name]}
    return any(before[name][0] in given.get(part, ()) for name, part in norms.items())


def _beside(name: str) -> str:
    """What a buffer's module lies in, as names there begin: "" for the model itself."""
    inside = name.rpartition(".")[0].rpartition(".")[0]
    return f"{inside}." if inside else ""


def _finish(
    config: PretrainedConfig,
    base: PreTrainedModel,
    path: str,
    name: str,
    value: int | None,
    probe: int,
    slots: list[Slot],
    modules: list[str],
) -> Axis:
    tensors = dict(base.named_parameters())
    names = {s.name for s in slots} & set(tensors)
    native = bool(names) and (not name.endswith(HEADS) or any(s.consumes for s in slots))
    if not native:  # no weight moved with it: the weights of the modules that did are what the axis runs through
        names = {n for n in tensors if any(n.startswith(m + ".") for m in modules)}
    if value is None:  # the field was left to the model: the shapes tell its size (None: all units in `dim`)
        value = base.state_dict()[slots[0].name].shape[slots[0].dim or 0] if slots else probe
    if slots and name.endswith("ffn") and all(slot.entry is not None for slot in slots):
        name = f"{name.removesuffix('expert_ffn').removesuffix('ffn')}expert_ffn"
    if config.is_encoder_decoder and "." not in name:
        towers = {_tower(s.group) for s in slots} or {_tower(m) for m in modules}
        if len(towers) == 1 and towers <= {"encoder", "decoder"}:
            name = f"{towers.pop()}.{name}"
    own = sum(tensors[n].numel() for n in names)
    return Axis(name, path, value, tuple(slots), tuple(modules), native, own, _step(config, path, value))


def _step(config: PretrainedConfig, path: str, size: int) -> int:
    """What the sizes that the config can say are multiples of: the hidden width, where the ratio is a whole number."""
    holder, field, entry = _place(config, path)
    if field not in RATIOS:
        return 1
    try:
        resized(config, path, size - 1)
    except Exception:  # a config may refuse with anything
        return _width(holder, entry)
    return 1


def _probes(value: int | None, name: str) -> list[int]:
    """Sizes to try: something smaller that still divides, else something else."""
    if value is None:
        return [48]
    if name.endswith("vocabulary"):
        return [value + 8]  # a smaller one would leave special tokens outside
    return [v for v in dict.fromkeys([value // 2, value - 1, value * 2, value + 1]) if v > 0 and v != value]


def _slots(base: PreTrainedModel, other: PreTrainedModel, size: int | None, probe: int, name: str) -> list[Slot]:
    before, after = _shapes(base), _shapes(other)
    if name.endswith("layers"):
        own = _blocks(before)
        changed = own ^ _blocks(after)
        outer = {_stack(block) for block in changed if changed.isdisjoint(_outwards(_stack(block)))}
        counts = Counter(map(_stack, own))
        stacks = {stack for stack in outer if counts[stack] == size}  # others have a count of their own
        return [Slot(key, None, stack) for key in before for stack in stacks if key.startswith(f"{stack}.")]
    slots: list[Slot] = []
    for key, shape in before.items():
        for dim in range(len(shape)) if key in after and len(shape) == len(after[key]) else ():
            if shape[dim] == after[key][dim]:
                continue
            layout = _layout(shape[dim], size, after[key][dim], probe, name)
            if dim > 0 and name.endswith("ffn") and _holds_experts(base, key):
                slots += _of_experts(base, key, dim - 1, layout)
            else:
                group = EVERYWHERE if name.endswith(SHARED) else _block(key)
                slots.append(Slot(key, dim, group, _consumes(base, key, dim), layout))
    joined = [slot for slot in slots if len(slot.layout.parts) > 1 and slot.entry is None and name.endswith("ffn")]
    wide = {slot.group for slot in joined if slot.consumes}
    slots = [replace(s, layout=Layout((len(s.layout.parts),))) if s.group in wide else s for s in slots]
    slots = _fused(slots) if name.endswith("kv_groups") else slots
    return _with_shared_bias(slots, base) if name.endswith(HEADS) else slots


def _with_shared_bias(slots: list[Slot], base: PreTrainedModel) -> list[Slot]:
    """Where one block holds the table of position biases for all heads of its stack (T5), all blocks keep the same."""
    groups = {slot.group for slot in slots}
    without = groups - {slot.group for slot in slots if isinstance(_owner(base, slot.name), nn.Embedding)}
    shared = {_stack(group) for group in groups - without} & {_stack(group) for group in without}
    return [replace(slot, group=_stack(slot.group)) if _stack(slot.group) in shared else slot for slot in slots]


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


def _layout(length: int, size: int | None, other_length: int, probe: int, name: str) -> Layout:
    """Read the layout off two lengths. Fused FFN parts and joined widths lie one after the other, heads are blocks;
    what is a whole number of times shorter than the hidden width holds a share of it. The proof checks."""
    share = (size or 0) // length
    if name.endswith("hidden") and share > 1 and length * share == size and other_length * share == probe:
        return Layout(share=share)
    per_unit = other_length // probe if size is None else (length - other_length) // (size - probe)
    return Layout((1,) * per_unit if per_unit > 1 and name.endswith(("ffn", "hidden")) else (max(per_unit, 1),))


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


def _with_heads(axis: Axis, attention: Mapping[str, int], base: PreTrainedModel) -> Axis:
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
        wrote = _written(base, name)
        if parameter.ndim == 2 and len(dims) == 2 and dims[1 - wrote].layout.share == 1:
            if dims[wrote].layout.share > 1 and not axis.whole_heads:
                continue
            wide[name] = sum(dims[1 - wrote].layout.parts)
            width[name] = sum(dims[wrote].layout.parts) // wide[name]
    inner: dict[tuple[str, int | None], Slot] = {}
    for module, heads in attention.items():
        for scope in _outwards(module):
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
    unlike = [name for name in maps if not {*"qkv"} & {*_called(name)}]
    answer = unlike[0] if len(unlike) == 1 else maps[-1]  # Kimi's vision makes its output map first
    asking = [name for name in maps if name != answer]
    apart, block = (1, axis.size // heads) if axis.whole_heads else (heads, 1)
    beside = {_stack(_stack(name)) for name in asking}  # a norm here is over all heads (OLMoE)
    for slot in axis.slots:
        name = f"{slot.name.removesuffix('bias')}weight" if slot.name.endswith("bias") else slot.name  # or in_proj_bias
        wrote = slot.name not in width or slot.dim == _written(base, slot.name)
        if name in asking and wrote:
            by_head = slot.layout.share > 1 or (width[name] > 1 and _called(name) in BY_HEAD)
            layout = Layout((1,) * width[name] * times, heads if by_head else 1, slot.layout.share)
            scaled = (width[name] == THREE or asks(name)) and base.config.model_type not in UNSCALED
            power = 0.5 if scaled and not axis.whole_heads else 0.0
            yield replace(slot, group=scope, layout=layout, heads=apart, block=block, power=power, powered=times)
            continue
        normed = axis.whole_heads and _stack(_stack(slot.name)) in beside and is_norm(_owner(base, slot.name))
        if normed or (slot.name == answer and not wrote):
            yield replace(slot, group=scope, heads=apart, block=block)


def asks(name: str) -> bool:
    """Whether a map makes queries: "attention.self.query.weight", "attn.q_proj_weight"."""
    return "q" in _called(name)


def _called(name: str) -> str:
    """What the map is called that a weight or bias belongs to."""
    return name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]


def _with_scales(axis: Axis, base: PreTrainedModel, other: PreTrainedModel, size: int) -> Axis:
    """Tell what the model multiplies by the root of its width, embeddings (Gemma, M2M-100, BioGPT), or divides by it.

    Their rows grow where the width falls, so that the stream stays as it was. Where the output head is the same matrix,
    the last norm takes that back; also where the head itself divides what it reads by the root of the width (T5).
    `other` is the model with the width `size`.
    """
    others, root, scaled, shrunk = dict(other.named_modules()), (axis.size / size) ** 0.5, set[int](), set[int]()
    for name, module in base.named_modules():
        before, after = _floats(module), _floats(others[name]) if name in others else {}
        if any(abs(value - root * after.get(key, 0.0)) < 1e-6 * value for key, value in before.items()):
            tables = [module, getattr(module, "embed_tokens", None)]
            scaled |= {id(table.weight) for table in tables if isinstance(table, nn.Embedding)}
        for key, value in before.items():
            read = getattr(module, key.removesuffix("_scale"), None)  # per_layer_model_projection(_scale) of Gemma 4
            if isinstance(read, nn.Linear) and abs(root * value - after.get(key, 0.0)) < 1e-6 * value:
                shrunk.add(id(read.weight))
    by_root = _divides_by_root(base)
    if not scaled and not shrunk and not by_root:
        return axis
    tensors = dict(base.named_parameters(remove_duplicate=False))
    powers = {slot.name: -0.5 for slot in axis.slots if id(tensors.get(slot.name)) in scaled}
    norms = [slot for slot in axis.slots if is_norm(_owner(base, slot.name))]
    if norms and (by_root or any(not isinstance(_owner(base, name), nn.Embedding) for name in powers)):
        last = norms[-1].name.rpartition(".")[0]
        powers |= {slot.name: 0.5 for slot in norms if slot.name.rpartition(".")[0] == last}
    powers |= {slot.name: 0.5 for slot in axis.slots if id(tensors.get(slot.name)) in shrunk}
    offsets = {name: _offset(_owner(base, name)) for name in powers if name.endswith("weight") and powers[name] > 0}
    slots = (replace(slot, power=powers[slot.name], offset=offsets.get(slot.name, 0.0))
             if slot.name in powers else slot for slot in axis.slots)  # fmt: skip
    return replace(axis, slots=tuple(slots))


def _divides_by_root(model: PreTrainedModel) -> bool:
    """Whether the output head reads the last state over the root of its width."""
    field = HEADS_BY_ROOT.get(model.config.model_type)
    return field is not None and hasattr(model, "lm_head") and bool(getattr(model.config, field))


def _offset(norm: Any) -> float:
    """1 where a norm of this kind starts from a weight of 0, so that 1 + weight is what it multiplies with."""
    try:
        return 1.0 - float(type(norm)(1).weight.detach())
    except Exception:  # it is made in another way
        return 0.0


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm: architectures have their own, which share nothing but the name."""
    return "Norm" in type(module).__name__


def _owner(model: PreTrainedModel, name: str) -> Any:
    return model.get_submodule(name.rpartition(".")[0])


def _floats(module: nn.Module) -> dict[str, float]:
    return {k: v for k, v in vars(module).items() if type(v) is float and not k.startswith("_")}


def _outwards(name: str) -> Iterator[str]:
    """A module and those around it, from the inside out."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _written(model: PreTrainedModel, name: str) -> int:
    """The dimension of a map's weight that it writes."""
    return 1 if isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D) else 0


def _consumes(model: PreTrainedModel, key: str, dim: int) -> bool:
    module_name, _, leaf = key.rpartition(".")
    module = model.get_submodule(module_name)
    return leaf == "weight" and (
        (isinstance(module, nn.Linear) and dim == 1) or (isinstance(module, Conv1D) and dim == 0)
    )


def _moved_attributes(base: PreTrainedModel, other: PreTrainedModel) -> list[str]:
    others = dict(other.named_modules())
    return [
        name
        for name, module in base.named_modules()
        if name in others and name and _integers(module) != _integers(others[name])
    ]


def _integers(module: nn.Module) -> dict[str, int]:
    return {k: v for k, v in vars(module).items() if type(v) is int and not k.startswith("_")}


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor.shape for name, tensor in tensors}


def _block(key: str) -> str:
    """The block a tensor lies in: the name up to its first number ("encoder.layer.0")."""
    match = re.match(r"(.*?\.\d+)\.", "." + key)
    return match.group(1)[1:] if match else ""


def _blocks(names: Iterable[str]) -> set[str]:
    """All blocks of all stacks, also those inside others: "stages.2", "stages.2.layers.5"."""
    split = (name.split(".") for name in names)
    return {".".join(parts[: i + 1]) for parts in split for i, part in enumerate(parts) if part.isdigit()}


def _stack(block: str) -> str:
    return block.rpartition(".")[0]


def _tower(name: str) -> str:
    return name.removeprefix("model.").partition(".")[0]


def _same_tensors(one: Axis, other: Axis) -> bool:
    return bool(one.slots) and one.slots == other.slots
