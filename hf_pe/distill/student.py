"""A student of another depth, width or architecture that begins with what it can take over from its teacher."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy import discover
from hf_pe.distill.layer_map import uniform
from hf_pe.errors import UsageError

Named = list[tuple[str, nn.Parameter]]


@torch.no_grad()
def start_from(teacher: PreTrainedModel, student: PreTrainedModel, layers: Sequence[int] | None = None) -> list[str]:
    """Copy the teacher's parameters into `student` where shapes allow; nothing else in it changes.

    Layer i begins as the teacher's layer `layers[i]`. Within a layer, and outside the layers, a parameter takes the one
    of the same name and shape, else the next of the same shape in the order in which modules were built: which is that
    of queries, keys, values, output, norm and FFN in most families. Of the teacher's own architecture at another depth
    or width a cut by importance is better: `StructuredPruning`.

    Args:
        teacher: stays as it is.
        student: built from its config, random; changed in place.
        layers: of the teacher, one for each layer of the student; default spread evenly, first with first and last with
            last.

    Returns:
        Names of the student's parameters that were copied.

    Raises:
        UsageError: `layers` names another number of layers, or one that is not there.
    """
    here, there = _blocks(student), _blocks(teacher)
    if layers is None:
        layers = [j for _, j in uniform(len(here), len(there))] if here and there else []
    if (here and there) and (len(layers) != len(here) or not all(0 <= j < len(there) for j in layers)):
        raise UsageError(
            f"start_from: expected {len(here)} numbers within 0..{len(there) - 1}, one for each layer of the student; "
            f"got {list(layers)}."
        )
    copied = []
    pairs = [(_outside(student, here), _outside(teacher, there))]
    pairs += [(_inside(student, here[i]), _inside(teacher, there[j])) for i, j in enumerate(layers)]
    for own, other in pairs:
        for name, one, found in _matched(own, other):
            one.copy_(found)
            copied.append(name)
    return copied


def _blocks(model: PreTrainedModel) -> list[str]:
    """Names of the layers, in order; of the deepest stack where there are several."""
    stacks: list[list[str]] = [[]]
    for axis in discover(model.config, type(model)).axes:
        if axis.kind == "layers":
            stacks += [[f"{stack}.{i}" for i in range(axis.size)] for stack in axis.groups]
    return max(stacks, key=len)


def _inside(model: PreTrainedModel, block: str) -> Named:
    return [(f"{block}.{name}", p) for name, p in model.get_submodule(block).named_parameters()]


def _outside(model: PreTrainedModel, blocks: list[str]) -> Named:
    return [(n, p) for n, p in model.named_parameters() if not any(n.startswith(f"{b}.") for b in blocks)]


def _matched(own: Named, other: Named) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
    """Pairs of the same shape: by the last parts of their names if all agree, else in order."""
    by_name = {_ending(name): p for name, p in other}
    if all(_ending(name) in by_name for name, _ in own):
        for name, p in own:
            if by_name[_ending(name)].shape == p.shape:
                yield name, p, by_name[_ending(name)]
        return
    place = 0
    for name, p in own:
        match = next((i for i in range(place, len(other)) if other[i][1].shape == p.shape), None)
        if match is not None:
            yield name, p, other[match][1]
            place = match + 1


def _ending(name: str) -> Any:
    """A parameter's name without the path to its layer."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return tuple(parts[numbers[-1] + 1 :] if numbers else parts)
