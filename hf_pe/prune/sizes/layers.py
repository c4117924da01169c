"""Decide which layers may be removed when a stack is cut to a number of layers."""

from hf_pe.anatomy import Axis
from hf_pe.anatomy.depth import removable_layers
from hf_pe.errors import UsageError
from hf_pe.model_spec import ModelSpec


def last_removed(spec: ModelSpec, axis: Axis, size: int) -> dict[str, list[int]]:
    """Return the kept layers if the last removable ones were removed: an example of a cut to `size` layers."""
    free = removable(spec, axis, size)
    removed = set(free[len(free) - (axis.size - size) :])
    return {stack: [i for i in range(axis.size) if i not in removed] for stack in axis.groups}


def removable(spec: ModelSpec, axis: Axis, size: int) -> list[int]:
    """Return the layers that may be removed, if enough of them may to leave `size`.

    Raises:
        UsageError: too many layers have to stay.
    """
    free = removable_layers(spec.config, spec.model_class, axis)
    least = axis.size - len(free)
    if size < max(least, 1):
        fixed = sorted(set(range(axis.size)) - set(free))
        raise UsageError(
            f"prune.keep.{axis.name}: expected {max(least, 1)} layers or more, got {size}: layers {fixed} differ from "
            "the others and have to stay where they are."
        )
    return free
