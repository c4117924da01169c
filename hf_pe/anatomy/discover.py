"""Finds a model's axes by difference: change one config field, build again on the meta device, compare.

Nothing here knows an architecture. The tables of `fields` only say what people call a size.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import replace

from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.anatomy.attention import heads_of, model_with_whole_heads, with_head_slots
from hf_pe.anatomy.axis import Anatomy, Axis, Slot
from hf_pe.anatomy.config_edit import locate_field, resized, shared_kv_groups, size_in, size_step
from hf_pe.anatomy.fields import AXIS_OF_FIELD, KIND_OF_LIST, RATIOS
from hf_pe.anatomy.kinds import AxisKind, kind_of
from hf_pe.anatomy.meta import Architecture, meta_model
from hf_pe.anatomy.module_names import tensor_shapes, tower_of
from hf_pe.anatomy.numbered import by_layer
from hf_pe.anatomy.scales import with_scales
from hf_pe.anatomy.slots import changed_modules, same_slots, slots_of


def discover(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> Anatomy:
    """Find the axes of `model_class` built from `config`, without weights.

    Raises:
        ValueError: the model cannot be built from its config on the meta device.
    """
    return _discover(Architecture.of(config, model_class))


@functools.lru_cache(maxsize=256)
def _discover(architecture: "Architecture") -> Anatomy:
    config, model_class = architecture.config, architecture.model_class
    base = meta_model(config, model_class)
    found: list[Axis] = []
    for path, name in _fields(config):
        axis = _axis(config, model_class, base, path, name)
        if axis is None or any(same_slots(axis, other) for other in found):
            continue
        if not axis.kind.is_residual or all(other.name != axis.name for other in found):
            found.append(axis)
    heads = _sizes_by_module(axis for axis in found if axis.kind.is_heads and not axis.kind.takes_queries)
    groups = _sizes_by_module(axis for axis in found if axis.kind.takes_queries)
    attention = {m: size for m, size in heads.items() if m not in groups} | groups  # what comes later counts
    for name, module in base.named_modules():
        if told := heads_of(module):
            attention.setdefault(name, told)
    for number, axis in enumerate(found):
        if axis.kind.is_residual:
            found[number] = with_head_slots(axis, attention, base)
    return Anatomy(tuple(found), sum(p.numel() for p in base.parameters()))


def _sizes_by_module(axes: Iterable[Axis]) -> dict[str, int]:
    """Return, for each module that moves along with one of the axes, that axis's size."""
    return {module: axis.size for axis in axes for module in axis.modules}


def _fields(config: PretrainedConfig, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted path, axis name) of every known size field, sub-configs included."""
    values, tower = config.to_dict(), f"{prefix.removesuffix('.').removesuffix('_config')}." if prefix else ""
    for field in values:
        sub = vars(config).get(field)  # asking for a field that differs between layers (Gemma 4) raises
        if isinstance(sub, PretrainedConfig):
            yield from _fields(sub, f"{prefix}{field}.")
        elif values[field] is not None and shared_kv_groups(values, field) == values[field]:
            continue  # each key-value head has a query head of its own: they go together
        elif by_layer(values.get("per_layer_config")) and any(
            field in each for each in values["per_layer_config"].values()
        ):
            continue  # one number does not say it
        elif field in AXIS_OF_FIELD and (values[field] is None or isinstance(values[field], int)):
            yield prefix + field, f"{tower}{AXIS_OF_FIELD[field]}"
        elif field in KIND_OF_LIST and isinstance(values[field], (list, tuple)):
            for stage, count in enumerate(values[field]):
                if isinstance(count, int) or field in RATIOS:
                    yield f"{prefix}{field}.{stage}", f"{tower}stage{stage + 1}.{KIND_OF_LIST[field]}"
        elif field in RATIOS and isinstance(values[field], (int, float)):
            yield prefix + field, f"{tower}{KIND_OF_LIST[field]}"


def _axis(
    config: PretrainedConfig, model_class: type[PreTrainedModel], base: PreTrainedModel, path: str, name: str
) -> Axis | None:
    value, kind = size_in(config, path), kind_of(name)
    for size in _probes(value, kind):
        try:
            other = meta_model(resized(config, path, size), model_class)
        except Exception:  # a size the architecture does not allow may raise anything: try the next
            other = None
        whole = model_with_whole_heads(config, base, other, path, size) if kind.is_residual else None
        other = whole or other
        if other is None or (kind.is_residual and tensor_shapes(other).keys() != tensor_shapes(base).keys()):
            continue  # as wide as its neighbour, a stage of ResNet has no shortcut: that is another model
        slots = slots_of(base, other, value, size, kind)
        modules = changed_modules(base, other)
        if slots or modules:
            axis = _finish(config, base, path, name, value, size, slots, modules)
            axis = replace(axis, whole_heads=whole is not None)
            holder, field, _ = locate_field(config, path)
            groups = shared_kv_groups(holder.to_dict(), field)
            if groups:  # each loses as many of its query heads
                axis = replace(axis, slots=tuple(replace(slot, heads=groups) for slot in axis.slots))
            return with_scales(axis, base, other, size) if kind.is_residual else axis
    return None


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
    native = bool(names) and (not kind_of(name).is_heads or any(s.consumes for s in slots))
    if not native:  # no weight moved with it: the weights of the modules that did are what the axis runs through
        names = {n for n in tensors if any(n.startswith(m + ".") for m in modules)}
    if value is None:  # the field was left to the model: the shapes tell its size (None: all units in `dim`)
        value = base.state_dict()[slots[0].name].shape[slots[0].dim or 0] if slots else probe
    kind = kind_of(name)
    if slots and kind.inside_experts and all(slot.entry is not None for slot in slots):
        name = name.removesuffix(kind.name) + kind.inside_experts
    if config.is_encoder_decoder and "." not in name:
        towers = {tower_of(s.group) for s in slots} or {tower_of(m) for m in modules}
        if len(towers) == 1 and towers <= {"encoder", "decoder"}:
            name = f"{towers.pop()}.{name}"
    own = sum(tensors[n].numel() for n in names)
    return Axis(name, path, value, tuple(slots), tuple(modules), native, own, size_step(config, path, value))


def _probes(value: int | None, kind: AxisKind) -> list[int]:
    """Return the sizes to compare the model with, the most telling first."""
    if value is None:
        return [48]
    return [size for size in dict.fromkeys(kind.probe_sizes(value)) if size > 0 and size != value]
