"""From what the user wants to keep to the size of every axis, from the config alone."""

from collections.abc import Mapping
from dataclasses import replace

from hf_pe.anatomy import CUTTABLE, Anatomy, Axis, discover, skeleton
from hf_pe.errors import UsageError, nearest
from hf_pe.measure import parameters
from hf_pe.plans import Sketch
from hf_pe.surgery import cut_config


def sizes(sketch: Sketch, keep: Mapping[str, float], share: float | None, multiple: int) -> dict[str, int]:
    """The size of each axis that is cut, depth first.

    Args:
        sketch: the model.
        keep: axis name to a share (float) or a number of units (int).
        share: how much of the parameters outside embeddings may remain; the FFN width is solved for.
        multiple: widths are rounded up to it.

    Raises:
        UsageError: unknown axis, one that cannot be cut natively, or a target that cannot be reached (says what can).
    """
    anatomy = discover(sketch.config, sketch.model_class)
    chosen = {
        axis.name: _units(sketch, axis, value, multiple)
        for name, value in keep.items()
        for axis in _axes(anatomy, name)
    }
    if share is not None:
        free = [axis for axis in anatomy.named("ffn") if axis.name not in chosen]
        if not free:
            raise UsageError("prune.parameters: expected FFN width to be free to follow, but prune.keep fixes it too.")
        chosen |= _solve(sketch, anatomy, chosen, free, share, multiple)
    changed = {name: size for name, size in chosen.items() if size != _axis(anatomy, name).size}
    if not changed:
        raise UsageError("prune: nothing would be removed; give keep less than the model has, such as ffn: 0.5.")
    return dict(sorted(changed.items(), key=lambda item: not item[0].endswith("layers")))


def resized_sketch(sketch: Sketch, target: Mapping[str, int]) -> Sketch:
    """The model after `target`, as far as sizes go."""
    config = sketch.config
    for name, size in target.items():
        config = cut_config(config, _axis(discover(config, sketch.model_class), name), size)
    return replace(sketch, config=config)


def _axis(anatomy: Anatomy, name: str) -> Axis:
    return next(axis for axis in anatomy.axes if axis.name == name)


def _axes(anatomy: Anatomy, name: str) -> tuple[Axis, ...]:
    found = anatomy.named(name)
    known = [axis.name for axis in anatomy.axes]
    if not found:
        raise UsageError(
            f"prune.keep: this model has no axis '{name}'; it has {', '.join(known)}.{nearest(name, known)}"
        )
    if found[0].kind not in CUTTABLE:
        raise UsageError(f"prune.keep: axis '{name}' cannot be cut yet; expected one of {', '.join(CUTTABLE)}.")
    for axis in found:
        if not axis.native:
            raise UsageError(
                f"prune.keep: the stock config of this model cannot say that '{axis.name}' are fewer, so the result "
                "would not load; cut ffn or layers."
            )
    return found


def _units(sketch: Sketch, axis: Axis, value: float, multiple: int) -> int:
    count = value if isinstance(value, int) else max(round(axis.size * value), 1)
    if not 1 <= count <= axis.size:
        raise UsageError(
            f"prune.keep.{axis.name}: the model has {axis.size} units; expected 1 to {axis.size}, got {value}."
        )
    if axis.kind == "ffn":
        return _rounded(int(count), axis.size, multiple)
    able = [size for size in range(1, axis.size + 1) if _can_say(sketch, axis, size)]
    if isinstance(value, int) and value not in able:
        raise UsageError(
            f"prune.keep.{axis.name}: the stock config does not allow {value}; it allows {', '.join(map(str, able))}."
        )
    return min(able, key=lambda size: (abs(size - axis.size * value), -size)) if count not in able else int(count)


def _can_say(sketch: Sketch, axis: Axis, size: int) -> bool:
    """Whether the stock config takes `size`: Llama's wants a hidden width that the query heads divide."""
    try:
        cut_config(sketch.config, axis, size)
    except Exception:  # a config may refuse with anything
        return False
    return True


def _rounded(count: int, size: int, multiple: int) -> int:
    return min(-(-count // multiple) * multiple, size)


def _solve(
    sketch: Sketch, anatomy: Anatomy, chosen: dict[str, int], free: list[Axis], share: float, multiple: int
) -> dict[str, int]:
    """Largest multiple of FFN width whose parameters fit; all free axes get the same share of their width."""
    dense = parameters(skeleton(sketch.config, sketch.model_class)).without_embeddings
    steps = range(1, free[0].size // multiple + 1)

    def width(step: int) -> dict[str, int]:
        wanted = step * multiple / free[0].size
        return {axis.name: _rounded(max(int(axis.size * wanted), 1), axis.size, multiple) for axis in free}

    def left(step: int) -> float:
        after = resized_sketch(sketch, chosen | width(step))
        return parameters(skeleton(after.config, after.model_class)).without_embeddings / dense

    low, high = 0, len(steps)
    while low < high:  # the largest step that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if left(middle) <= share else (low, middle - 1)
    if low == 0:
        raise UsageError(
            f"prune.parameters: {share:.0%} cannot be reached by FFN width alone; the least is {left(1):.1%}. "
            "Cut layers too, or ask for more."
        )
    return width(low)
