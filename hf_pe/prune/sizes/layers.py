"""Which layers may go when a stack is cut to a number of layers."""

from hf_pe.anatomy import Axis
from hf_pe.anatomy.depth import removable_layers
from hf_pe.errors import UsageError
from hf_pe.model_spec import ModelSpec


def last_removed(spec: ModelSpec, axis: Axis, size: int) -> dict[str, list[int]]:
    """Return kept layers as they may come out: without the last ones that can be removed."""
    free = removable(spec, axis, size)
    gone = set(free[len(free) - (axis.size - size) :])
    return {stack: [i for i in range(axis.size) if i not in gone] for stack in axis.groups}


def removable(spec: ModelSpec, axis: Axis, size: int) -> list[int]:
    """Return the layers of which some can be removed to leave `size`.

    Raises:
        UsageError: too many hold their position.
    """
    free = removable_layers(spec.config, spec.model_class, axis)
    least = axis.size - len(free)
    if size < max(least, 1):
        held = sorted(set(range(axis.size)) - set(free))
        raise UsageError(
            f"prune.keep.{axis.name}: {size} cannot be reached; the least is {max(least, 1)}: layers {held} are built "
            "differently and hold their position."
        )
    return free
