"""Compute the sizes that axes may have: those that a recipe states, and those that the config of a model can express.

Widths are rounded to multiples; heads, layers and experts only have the sizes for which the config remains valid.
Cutting one axis can shrink another (key-value groups take along the query heads that read them), so sizes are computed
axis by axis, in the order in which they are cut.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from hf_pe.anatomy import EXPERT_STEP, Anatomy, Axis, discover, kind_of, kinds_of, size_in
from hf_pe.anatomy.depth import removable_layers
from hf_pe.errors import UsageError, nearest
from hf_pe.model_spec import ModelSpec
from hf_pe.prune.sizes.search import AxisSizes
from hf_pe.surgery import cut_config


def require_amount(value: Any) -> Any:
    """Return a fraction or a number of units as it is.

    Raises:
        ValueError: the value is neither.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not value > 0 or (isinstance(value, float) and not value <= 1):  # NaN is neither
        raise ValueError(f"expected a fraction above 0 and up to 1.0, or a whole number of units from 1; got {value!r}")
    return value


def ambiguous_width(keep: Mapping[str, Any]) -> str:
    """Return a sentence where a width is to be kept at the whole number 1, which may mean one unit or all of them.

    "" where there is no such width.
    """
    widths = (name for name in keep if any(kind.is_width for kind in kinds_of([name])))
    name = next((name for name in widths if type(keep[name]) is int and keep[name] == 1), None)
    if name is None:
        return ""
    return (
        f"{name}: 1 can be read as one unit or as all of them. Write 1.0 to keep all, a fraction such as 0.5, or a "
        "number of units from 2 on"
    )


def kept_sizes(spec: ModelSpec, keep: Mapping[str, float], round_to: int, devices: int = 1) -> AxisSizes:
    """Return the size of each axis that `keep` names.

    Args:
        spec: the model.
        keep: by axis name the fraction (float) or the number of units (int) to keep.
        round_to: widths are rounded up to multiples of it.
        devices: number of devices among which tensor parallelism divides heads and widths; the part of each device is
            a multiple.

    Raises:
        UsageError: an axis does not exist or a stock config cannot express fewer of its units, or the model or its
            config cannot have a size once the axes before it are cut (key-value groups take along their query heads).
    """
    anatomy = discover(spec.config, spec.model_class)
    requested = {axis.name: (axis, value) for name, value in keep.items() for axis in axes_named(anatomy, name)}
    sizes = AxisSizes()
    for name in sorted(requested, key=_cut_order):  # units that a turn takes along are missing at the next
        axis, value = requested[name]
        remaining = next(axis for axis in discover(spec.config, spec.model_class).axes if axis.name == name)
        sizes[name] = _units(spec, remaining, value, round_to, devices, original_size=axis.size)
        spec = resized_spec(spec, {name: sizes[name]})
    return {name: sizes[name] for name in requested}


def rounding_notes(spec: ModelSpec, keep: Mapping[str, float], setting: AxisSizes) -> tuple[str, ...]:
    """Return a note for each size in `setting` that differs from what `keep` asks for."""
    anatomy = discover(spec.config, spec.model_class)
    requested = {axis.name: (axis, value) for name, value in keep.items() for axis in axes_named(anatomy, name)}
    return tuple(
        f"{name}: {setting[name]} of {axis.size} units are kept, the nearest size that is allowed; {value} asks for "
        f"{value if isinstance(value, int) else value * axis.size:g}"
        for name, (axis, value) in requested.items()
        if abs(setting[name] - (value if isinstance(value, int) else value * axis.size)) >= 1
    )


def candidate_sizes(spec: ModelSpec, name: str, round_to: int, devices: int = 1) -> list[AxisSizes]:
    """Return all sizes that an axis can have, from the original size to the smallest.

    Axes of the same name in several towers keep the same fraction.

    Args:
        spec: the model.
        name: name of the axis.
        round_to: see `kept_sizes`.
        devices: see `kept_sizes`.

    Raises:
        UsageError: the axis does not exist, or a stock config cannot express fewer of its units.
    """
    first, *others = axes_named(discover(spec.config, spec.model_class), name)
    if first.kind.is_rounded:
        sizes = {_rounded(size, first, round_to * devices) for size in range(1, first.size + 1)}
    elif first.kind.is_depth:
        least = first.size - len(removable_layers(spec.config, spec.model_class, first))
        sizes = set(range(max(least, 1), first.size + 1))
    else:
        sizes = set(_expressible(spec, first, round_to, devices))
    return [
        {first.name: size} | {axis.name: _units(spec, axis, size / first.size, round_to, devices) for axis in others}
        for size in sorted(sizes, reverse=True)
    ]


def smaller_sizes(spec: ModelSpec, setting: Mapping[str, int]) -> AxisSizes:
    """Return the sizes in `setting` that differ from the model's, in the order in which axes are cut."""
    sizes = {axis.name: axis.size for axis in discover(spec.config, spec.model_class).axes}
    smaller = {name: size for name, size in setting.items() if size != sizes[name]}
    return dict(sorted(smaller.items(), key=lambda item: _cut_order(item[0])))


def sizes_in_turn(spec: ModelSpec, setting: Mapping[str, int]) -> tuple[AxisSizes, ModelSpec]:
    """Return the size of each axis of `setting` right after its turn, and the model after all of them.

    Key-value groups take along the query heads that read them. When it is the turn of the query heads, fewer may remain
    than `setting` asks for; then all of these stay, the same number in each group.
    """
    config, sizes = spec.config, AxisSizes()
    for name, size in smaller_sizes(spec, setting).items():
        axis = next(axis for axis in discover(config, spec.model_class).axes if axis.name == name)
        fitting = min(size, axis.size)
        sizes[name] = fitting - fitting % axis.size_multiple if axis.kind.is_heads else fitting
        config = cut_config(config, axis, sizes[name])
    return sizes, replace(spec, config=config)


def resized_spec(spec: ModelSpec, setting: Mapping[str, int]) -> ModelSpec:
    """Return the spec of the model cut to the sizes in `setting`."""
    return sizes_in_turn(spec, setting)[1]


def final_sizes(before: ModelSpec, after: ModelSpec, names: Iterable[str]) -> AxisSizes:
    """Return the size that each of the named axes of `before` has in `after`, where other cuts may have shrunk it."""
    axes = {axis.name: axis for axis in discover(before.config, before.model_class).axes}
    sizes = ((name, size_in(after.config, axes[name].config_field)) for name in names)
    return {name: size for name, size in sizes if size is not None}


def axes_named(anatomy: Anatomy, name: str) -> tuple[Axis, ...]:
    """Return the axes called `name`, of all towers.

    Raises:
        UsageError: there is none, or a stock config cannot express fewer of its units.
    """
    axes = anatomy.named(name)
    names = [axis.name for axis in anatomy.axes]
    if not axes:
        raise UsageError(f"prune: this model has no axis '{name}'; it has {', '.join(names)}.{nearest(name, names)}")
    if axes[0].kind.is_vocabulary:
        raise UsageError(
            f"prune: a cut of '{name}' needs a tokenizer with the kept tokens alone, which this version does not make. "
            "Use `hf_pe.cut` with token ids of your own."
        )
    for axis in axes:
        if not axis.native:
            raise UsageError(
                f"prune: the stock config of this model cannot express fewer '{axis.name}', so the result would not "
                "load. Cut ffn or layers."
            )
    return axes


def _cut_order(name: str) -> int:
    """Return when an axis is cut: a lower number comes first."""
    return kind_of(name).cut_order


def _units(
    spec: ModelSpec, axis: Axis, value: float, round_to: int, devices: int, original_size: int | None = None
) -> int:
    """Return the allowed size nearest to `value`: units, or a fraction of `original_size` (default: that of the axis).

    Raises:
        UsageError: there are not so many units, or the config allows no such number.
    """
    original_size = original_size or axis.size
    count = value if isinstance(value, int) else min(max(round(original_size * value), 1), axis.size)
    if not 1 <= count <= axis.size:
        others = f", {axis.size} of {original_size} once other axes are cut" if axis.size < original_size else ""
        raise UsageError(
            f"prune.keep.{axis.name}: the model has {axis.size} units{others}; expected 1 to {axis.size}, got {value}."
        )
    if axis.kind.is_rounded:
        return _rounded(int(count), axis, round_to * devices)
    allowed = _expressible(spec, axis, round_to, devices)
    if isinstance(value, int) and value not in allowed:
        raise UsageError(
            f"prune.keep.{axis.name}: the stock config does not allow {value}; it allows "
            f"{', '.join(map(str, allowed))}{f', divided among {devices} devices' if devices > 1 else ''}."
        )
    return int(count) if count in allowed else min(allowed, key=lambda size: (abs(size - original_size * value), -size))


def _expressible(spec: ModelSpec, axis: Axis, round_to: int, devices: int) -> list[int]:
    """Return the sizes that the stock config can express and `devices` can divide.

    Llama's config, for one, needs a hidden width that its query heads divide.

    Raises:
        UsageError: no number of heads can be divided among so many devices.
    """
    step = math.lcm(round_to if axis.kind.is_width else devices if axis.kind.is_heads else 1, axis.size_multiple)

    def is_valid(size: int) -> bool:
        try:
            cut_config(spec.config, axis, size)
        except Exception:  # a config may refuse with anything
            return False
        return True

    may_be_uncut = not axis.kind.is_heads
    in_steps = (n for n in range(1, axis.size + 1) if n % step == 0 or (may_be_uncut and n == axis.size))
    sizes = [size for size in in_steps if is_valid(size)]
    if not sizes:
        raise UsageError(
            f"prune.tensor_parallel: none of 1 to {axis.size} {axis.name} can be divided among {devices} devices. "
            f"Name fewer devices, or do not cut {axis.name}."
        )
    return sizes


def _rounded(count: int, axis: Axis, round_to: int) -> int:
    step = math.lcm(round_to, axis.size_multiple, EXPERT_STEP if axis.in_experts else 1)
    return min(-(-count // step) * step, axis.size)
