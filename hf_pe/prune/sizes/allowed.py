"""The sizes that axes may have: those that are stated, those that a config can say, and what follows from each."""

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


def amount(value: Any) -> Any:
    """Return a share or a number of units as it is.

    Raises:
        ValueError: it is neither.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not value > 0 or (isinstance(value, float) and not value <= 1):  # NaN is neither
        raise ValueError(f"expected a share above 0 and up to 1.0, or a whole number of units from 1; got {value!r}")
    return value


def one_or_all(keep: Mapping[str, Any]) -> str:
    """Return why a whole number of 1 for a width is asked back: it is one unit, and looks like all; "" if none is 1."""
    widths = (name for name in keep if any(kind.is_width for kind in kinds_of([name])))
    name = next((name for name in widths if type(keep[name]) is int and keep[name] == 1), None)
    if name is None:
        return ""
    return (
        f"{name}: 1 can be read as one unit or as all of them. Write 1.0 to keep all, a share such as 0.5, or a number "
        "of units from 2 on"
    )


def kept_sizes(spec: ModelSpec, keep: Mapping[str, float], round_to: int, devices: int = 1) -> AxisSizes:
    """The size of each axis that `keep` names.

    Args:
        spec: the model.
        keep: axis name to a share (float) or a number of units (int).
        round_to: widths are rounded up to it.
        devices: among which tensor-parallel serving divides heads and widths, each share a multiple.

    Raises:
        UsageError: unknown axis, one that cannot be cut natively, or a size that the model or its config cannot have
            once the axes before it are cut (key-value groups take along the query heads that read them).
    """
    whole = discover(spec.config, spec.model_class)
    asked = {axis.name: (axis, value) for name, value in keep.items() for axis in axes_named(whole, name)}
    sizes = AxisSizes()
    for name in sorted(asked, key=_turn):  # what a turn takes along is no longer there at the next
        axis, value = asked[name]
        left = next(axis for axis in discover(spec.config, spec.model_class).axes if axis.name == name)
        sizes[name] = _units(spec, left, value, round_to, devices, whole=axis.size)
        spec = resized_spec(spec, {name: sizes[name]})
    return {name: sizes[name] for name in asked}


def snapped(spec: ModelSpec, keep: Mapping[str, float], setting: AxisSizes) -> tuple[str, ...]:
    """What to say of each size in `setting` that is not what `keep` asked for."""
    anatomy = discover(spec.config, spec.model_class)
    asked = {axis.name: (axis, value) for name, value in keep.items() for axis in axes_named(anatomy, name)}
    return tuple(
        f"{name}: {setting[name]} of {axis.size} units are kept, the nearest size that is allowed; {value} asks for "
        f"{value if isinstance(value, int) else value * axis.size:g}"
        for name, (axis, value) in asked.items()
        if abs(setting[name] - (value if isinstance(value, int) else value * axis.size)) >= 1
    )


def candidate_sizes(spec: ModelSpec, name: str, round_to: int, devices: int = 1) -> list[AxisSizes]:
    """All sizes that the axis `name` can have, from the whole to the least; several towers keep the same share.

    Raises:
        UsageError: unknown axis or one that cannot be cut natively.
    """
    first, *others = axes_named(discover(spec.config, spec.model_class), name)
    if first.kind.is_rounded:
        sizes = {_rounded(size, first, round_to * devices) for size in range(1, first.size + 1)}
    elif first.kind.is_depth:
        least = first.size - len(removable_layers(spec.config, spec.model_class, first))
        sizes = set(range(max(least, 1), first.size + 1))
    else:
        sizes = set(_sayable(spec, first, round_to, devices))
    return [
        {first.name: size} | {axis.name: _units(spec, axis, size / first.size, round_to, devices) for axis in others}
        for size in sorted(sizes, reverse=True)
    ]


def removed(spec: ModelSpec, setting: Mapping[str, int]) -> AxisSizes:
    """What of `setting` is less than the model has, depth first, hidden width last."""
    now = {axis.name: axis.size for axis in discover(spec.config, spec.model_class).axes}
    less = {name: size for name, size in setting.items() if size != now[name]}
    return dict(sorted(less.items(), key=lambda item: _turn(item[0])))


def sizes_in_turn(spec: ModelSpec, setting: Mapping[str, int]) -> tuple[AxisSizes, ModelSpec]:
    """Return the size of each axis of `setting` right after its turn, and the model after all of them.

    Key-value groups take along the query heads that read them, so their own turn may find fewer query heads than
    `setting` asks for: then those that are there stay, the same number in each group.
    """
    config, sizes = spec.config, AxisSizes()
    for name, size in removed(spec, setting).items():
        axis = next(axis for axis in discover(config, spec.model_class).axes if axis.name == name)
        fitting = min(size, axis.size)
        sizes[name] = fitting - fitting % axis.size_multiple if axis.kind.is_heads else fitting
        config = cut_config(config, axis, sizes[name])
    return sizes, replace(spec, config=config)


def resized_spec(spec: ModelSpec, setting: Mapping[str, int]) -> ModelSpec:
    """The model after `setting`, as far as sizes go."""
    return sizes_in_turn(spec, setting)[1]


def final_sizes(before: ModelSpec, after: ModelSpec, names: Iterable[str]) -> AxisSizes:
    """The size that each of the named axes of `before` has in `after`, where others may have taken along some of it."""
    axes = {axis.name: axis for axis in discover(before.config, before.model_class).axes}
    sizes = ((name, size_in(after.config, axes[name].config_field)) for name in names)
    return {name: size for name, size in sizes if size is not None}


def axes_named(anatomy: Anatomy, name: str) -> tuple[Axis, ...]:
    """The axes called `name`, of all towers.

    Raises:
        UsageError: there is none, or it cannot be cut natively.
    """
    found = anatomy.named(name)
    known = [axis.name for axis in anatomy.axes]
    if not found:
        raise UsageError(f"prune: this model has no axis '{name}'; it has {', '.join(known)}.{nearest(name, known)}")
    if found[0].kind.is_vocabulary:
        raise UsageError(
            f"prune: rows of '{name}' go only with a tokenizer that knows the others alone, which this version does "
            "not make. `hf_pe.cut` takes them away for token ids of your own."
        )
    for axis in found:
        if not axis.native:
            raise UsageError(
                f"prune: the stock config of this model cannot say that '{axis.name}' are fewer, so the result "
                "would not load; cut ffn or layers."
            )
    return found


def _turn(name: str) -> int:
    """Return when an axis is cut: a lower number comes first."""
    return kind_of(name).cut_order


def _units(spec: ModelSpec, axis: Axis, value: float, round_to: int, devices: int, whole: int | None = None) -> int:
    """The allowed size nearest to `value`: units, or a share of `whole` (default: of the axis as it is)."""
    whole = whole or axis.size
    count = value if isinstance(value, int) else min(max(round(whole * value), 1), axis.size)
    if not 1 <= count <= axis.size:
        gone = f", {axis.size} of {whole} once others are cut" if axis.size < whole else ""
        raise UsageError(
            f"prune.keep.{axis.name}: the model has {axis.size} units{gone}; expected 1 to {axis.size}, got {value}."
        )
    if axis.kind.is_rounded:
        return _rounded(int(count), axis, round_to * devices)
    able = _sayable(spec, axis, round_to, devices)
    if isinstance(value, int) and value not in able:
        raise UsageError(
            f"prune.keep.{axis.name}: the stock config does not allow {value}; it allows {', '.join(map(str, able))}"
            f"{f', divided among {devices} devices' if devices > 1 else ''}."
        )
    return min(able, key=lambda size: (abs(size - whole * value), -size)) if count not in able else int(count)


def _sayable(spec: ModelSpec, axis: Axis, round_to: int, devices: int) -> list[int]:
    """The sizes that the stock config takes, and `devices` can divide: Llama's wants a hidden width that the query
    heads divide.

    Raises:
        UsageError: no number of heads can be divided among so many devices.
    """
    step = math.lcm(round_to if axis.kind.is_width else devices if axis.kind.is_heads else 1, axis.size_multiple)

    def able(size: int) -> bool:
        try:
            cut_config(spec.config, axis, size)
        except Exception:  # a config may refuse with anything
            return False
        return True

    whole = not axis.kind.is_heads
    found = [n for n in range(1, axis.size + 1) if (n % step == 0 or (whole and n == axis.size)) and able(n)]
    if not found:
        raise UsageError(
            f"prune.tensor_parallel: none of 1 to {axis.size} {axis.name} can be divided among {devices} devices. "
            f"Name fewer devices, or leave {axis.name} whole."
        )
    return found


def _rounded(count: int, axis: Axis, round_to: int) -> int:
    step = math.lcm(round_to, axis.size_multiple, EXPERT_STEP if axis.in_experts else 1)
    return min(-(-count // step) * step, axis.size)
