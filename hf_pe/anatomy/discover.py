"""Discovers the axes of a model: which of its sizes can be cut, and which tensors each of them touches.

A config field such as `intermediate_size` decides the shapes of many tensors. To make it smaller, the same units have
to be cut from all of them. Discovery lists these tensors from the config and the class alone, without weights and
without a table of architectures:

1. It builds the model twice on the meta device: from the config, and from a copy in which one field has another value,
   the probe size. It tries one field after the other, sub-configs included ("text_config.num_hidden_layers"); of fields
   that list one size per stage, one entry after the other ("depths.2"). `hf_pe.anatomy.fields` lists the names that
   configs use for sizes.
2. It compares the two models. Each tensor dimension whose length differs is a *slot*. The two lengths give its
   *layout*: how many positions each unit has, and whether these are consecutive (a head) or in fused parts (gate and
   up). For depth, a slot is a whole tensor of the stack. Modules with an integer attribute that differs, such as
   `num_heads`, are listed too.
3. Field, size, slots and modules together are an *axis*. Its slots form *groups*, one for each block: each group keeps
   units of its own, but all keep the same number, since the config has one number for all blocks, or one per
   stage. The hidden width and the vocabulary have one group, since all blocks share their units.

The FFN axis of BERT, for example, is the field `intermediate_size` with one group for each layer, of three slots:
dimension 0 of `intermediate.dense.weight` and of its bias, and dimension 1 of `output.dense.weight`. The last slot
*consumes* the units, as the input of a linear layer.

Shapes do not show everything. `with_head_slots` separates dimensions inside attention from those of the residual stream
that have the same length, `with_scales` adds factors that depend on the hidden width, and two fields that change the
same slots are one axis. Discovery does not decide whether a cut along these slots gives the right model: that is
verified on a tiny model before any cut (`hf_pe.verify`).
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
    """Return the axes of `model_class` built from `config`, and its number of parameters.

    Args:
        config: of the model; stays as it is. Equal configs are compared once and then read from a cache.
        model_class: of the model, with its head, which may touch further tensors.

    Raises:
        ValueError: the model cannot be built from its config on the meta device.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> anatomy = discover(BertConfig(num_hidden_layers=2), BertModel)
        >>> [(axis.name, axis.size) for axis in anatomy.axes]
        [('vocabulary', 30522), ('hidden', 768), ('layers', 2), ('heads', 12), ('ffn', 3072)]
        >>> ffn = anatomy.named("ffn")[0]
        >>> for slot in ffn.in_group("encoder.layer.1"):
        ...     print(slot.name, slot.dim, slot.consumes)
        encoder.layer.1.intermediate.dense.weight 0 False
        encoder.layer.1.intermediate.dense.bias 0 False
        encoder.layer.1.output.dense.weight 1 True
    """
    return _discover(Architecture.of(config, model_class))


@functools.lru_cache(maxsize=256)
def _discover(architecture: "Architecture") -> Anatomy:
    config, model_class = architecture.config, architecture.model_class
    base = meta_model(config, model_class)
    axes: list[Axis] = []
    for path, name in _fields(config):
        axis = _axis_of_field(config, model_class, base, path, name)
        if axis is None or any(same_slots(axis, earlier) for earlier in axes):
            continue
        if not axis.kind.is_residual or all(earlier.name != axis.name for earlier in axes):
            axes.append(axis)
    heads = _sizes_by_module(axis for axis in axes if axis.kind.is_heads and not axis.kind.takes_queries)
    groups = _sizes_by_module(axis for axis in axes if axis.kind.takes_queries)
    attention = {m: size for m, size in heads.items() if m not in groups} | groups  # later entries override
    for name, module in base.named_modules():
        if count := heads_of(module):
            attention.setdefault(name, count)
    axes = [with_head_slots(axis, attention, base) if axis.kind.is_residual else axis for axis in axes]
    return Anatomy(tuple(axes), sum(p.numel() for p in base.parameters()))


def _sizes_by_module(axes: Iterable[Axis]) -> dict[str, int]:
    """Return, for each module that changes along with one of the axes, the size of that axis."""
    return {module: axis.size for axis in axes for module in axis.modules}


def _fields(config: PretrainedConfig, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted path, axis name) of every field that is known to state a size, sub-configs included."""
    values, tower = config.to_dict(), f"{prefix.removesuffix('.').removesuffix('_config')}." if prefix else ""
    for field in values:
        sub = vars(config).get(field)  # asking for a field that differs between layers (Gemma 4) raises
        if isinstance(sub, PretrainedConfig):
            yield from _fields(sub, f"{prefix}{field}.")
        elif values[field] is not None and shared_kv_groups(values, field) == values[field]:
            continue  # each key-value head has one query head: the two are cut together
        elif by_layer(values.get("per_layer_config")) and any(
            field in settings for settings in values["per_layer_config"].values()
        ):
            continue  # the size differs between layers, so one number cannot state it
        elif field in AXIS_OF_FIELD and (values[field] is None or isinstance(values[field], int)):
            yield prefix + field, f"{tower}{AXIS_OF_FIELD[field]}"
        elif field in KIND_OF_LIST and isinstance(values[field], (list, tuple)):
            for stage, count in enumerate(values[field]):
                if isinstance(count, int) or field in RATIOS:
                    yield f"{prefix}{field}.{stage}", f"{tower}stage{stage + 1}.{KIND_OF_LIST[field]}"
        elif field in RATIOS and isinstance(values[field], (int, float)):
            yield prefix + field, f"{tower}{KIND_OF_LIST[field]}"


def _axis_of_field(
    config: PretrainedConfig, model_class: type[PreTrainedModel], base: PreTrainedModel, path: str, name: str
) -> Axis | None:
    """Return the axis whose size one field states; None where no probe size changes anything in the model.

    Args:
        config: of the model.
        model_class: of the model.
        base: the model on the meta device.
        path: of the field.
        name: of the axis.
    """
    value, kind = size_in(config, path), kind_of(name)
    for size in _probe_sizes(value, kind):
        try:
            probe = meta_model(resized(config, path, size), model_class)
        except Exception:  # a size the architecture does not allow may raise anything: try the next
            probe = None
        with_fewer_heads = model_with_whole_heads(config, base, probe, path, size) if kind.is_residual else None
        probe = with_fewer_heads or probe
        if probe is None or (kind.is_residual and tensor_shapes(probe).keys() != tensor_shapes(base).keys()):
            continue  # a stage of ResNet that becomes as wide as its neighbour loses its shortcut: another model
        slots = slots_of(base, probe, value, size, kind)
        modules = changed_modules(base, probe)
        if slots or modules:
            axis = _as_axis(config, base, path, name, value, size, slots, modules)
            axis = replace(axis, whole_heads=with_fewer_heads is not None)
            holder, field, _ = locate_field(config, path)
            groups = shared_kv_groups(holder.to_dict(), field)
            if groups:  # each key-value group keeps the same number of query heads
                axis = replace(axis, slots=tuple(replace(slot, subgroups=groups) for slot in axis.slots))
            return with_scales(axis, base, probe, size) if kind.is_residual else axis
    return None


def _as_axis(
    config: PretrainedConfig,
    base: PreTrainedModel,
    path: str,
    name: str,
    value: int | None,
    probe: int,
    slots: list[Slot],
    modules: list[str],
) -> Axis:
    """Assemble an axis from what differs between the model and the one with the probe size: its name, size and weights.

    Args:
        config: of the model.
        base: the model on the meta device.
        path: of the field.
        name: of the axis, so far without the tower of an encoder-decoder that shares the field's config.
        value: the size that the field states, or None.
        probe: the size that the model was compared with.
        slots: tensor dimensions that differ.
        modules: names of modules with an integer attribute that differs.
    """
    tensors = dict(base.named_parameters())
    names = {s.name for s in slots} & set(tensors)
    native = bool(names) and (not kind_of(name).is_heads or any(s.consumes for s in slots))
    if not native:  # no weight changed with it, so its parameters are those of the modules that did
        names = {n for n in tensors if any(n.startswith(m + ".") for m in modules)}
    if value is None:  # the config leaves the field to the model: the shapes give its size
        value = base.state_dict()[slots[0].name].shape[slots[0].dim or 0] if slots else probe
    kind = kind_of(name)
    if slots and kind.inside_experts and all(slot.entry is not None for slot in slots):
        name = name.removesuffix(kind.name) + kind.inside_experts
    if config.is_encoder_decoder and "." not in name:
        towers = {tower_of(s.group) for s in slots} or {tower_of(m) for m in modules}
        if len(towers) == 1 and towers <= {"encoder", "decoder"}:
            name = f"{towers.pop()}.{name}"
    parameters = sum(tensors[n].numel() for n in names)
    return Axis(name, path, value, tuple(slots), tuple(modules), native, parameters, size_step(config, path, value))


def _probe_sizes(value: int | None, kind: AxisKind) -> list[int]:
    """Return the sizes to compare the model with, in the order in which they are tried."""
    if value is None:
        return [48]
    return [size for size in dict.fromkeys(kind.probe_sizes(value)) if size > 0 and size != value]
