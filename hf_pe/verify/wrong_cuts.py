"""Deliberately wrong cuts, which the verification has to detect."""

import copy
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from hf_pe.anatomy import Axis
from hf_pe.anatomy.axis import Kept
from hf_pe.anatomy.depth import removable_layers

TRIES = 12
"""Wrong cuts that are tried until one is noticed: half of them in the largest slots, the others spread."""


def wrong_cuts(model: PreTrainedModel, smaller: PreTrainedModel, kept: Kept, axis: Axis) -> Iterator[PreTrainedModel]:
    """Cuts with one mistake: one of the slots permuted, or two kept layers exchanged. One has to be noticed."""
    if not axis.kind.is_depth:
        stored = smaller.state_dict()
        slots = [slot for slot in axis.slots if slot.name in stored]
        slots = sorted(slots, key=lambda slot: (not slot.consumes, -stored[slot.name].numel()))
        slots = list({slot.name: slot for slot in slots}.values())
        first, others = slots[: TRIES // 2], slots[TRIES // 2 :]
        for slot in [*first, *others[:: -(-len(others) * 2 // TRIES) or 1]]:
            wrong = copy.deepcopy(smaller)
            tensor = slot.of(wrong.state_dict())
            tensor.copy_(tensor.roll(1, slot.dim or 0))
            yield wrong
        return
    stack, units = next(iter(kept.items()))
    removable = removable_layers(model.config, type(model), axis)
    free = [i for i, unit in enumerate(units) if unit in removable]
    wrong = copy.deepcopy(smaller)
    if len(free) < 2:  # none to exchange it with: one that stays has its largest weights in another order
        largest = max(wrong.get_submodule(f"{stack}.{len(units) - 1}").parameters(), key=torch.numel)
        largest.data = largest.data.roll(1, 0)
        yield wrong
        return
    one, other = (wrong.get_submodule(f"{stack}.{i}").state_dict() for i in free[:2])
    for key, tensor in one.items():
        held = tensor.clone()
        tensor.copy_(other[key])
        other[key].copy_(held)
    yield wrong
