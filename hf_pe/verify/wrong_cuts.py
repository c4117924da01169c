"""Makes deliberately wrong cuts, which verification has to detect."""

import copy
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from hf_pe.anatomy import Axis
from hf_pe.anatomy.axis import Kept
from hf_pe.anatomy.depth import removable_layers

TRIES = 12
"""Number of wrong cuts that are tried until one is detected: half in the largest slots, the others spread evenly."""


def wrong_cuts(model: PreTrainedModel, smaller: PreTrainedModel, kept: Kept, axis: Axis) -> Iterator[PreTrainedModel]:
    """Yield cut models with one mistake each: the units of a slot in the wrong order, or two layers exchanged.

    Args:
        model: before the cut.
        smaller: after it.
        kept: its kept units.
        axis: that was cut.
    """
    if not axis.kind.is_depth:
        stored = smaller.state_dict()
        slots = [slot for slot in axis.slots if slot.name in stored]
        slots = sorted(slots, key=lambda slot: (not slot.consumes, -stored[slot.name].numel()))
        slots = list({slot.name: slot for slot in slots}.values())
        largest_slots, smaller_slots = slots[: TRIES // 2], slots[TRIES // 2 :]
        for slot in [*largest_slots, *smaller_slots[:: -(-len(smaller_slots) * 2 // TRIES) or 1]]:
            wrong = copy.deepcopy(smaller)
            tensor = slot.of(wrong.state_dict())
            tensor.copy_(tensor.roll(1, slot.dim or 0))
            yield wrong
        return
    stack, units = next(iter(kept.items()))
    removable = removable_layers(model.config, type(model), axis)
    exchangeable = [i for i, unit in enumerate(units) if unit in removable]
    wrong = copy.deepcopy(smaller)
    if len(exchangeable) < 2:  # no two layers can be exchanged: permute the largest weight of the last one
        largest = max(wrong.get_submodule(f"{stack}.{len(units) - 1}").parameters(), key=torch.numel)
        largest.data = largest.data.roll(1, 0)
        yield wrong
        return
    first, second = (wrong.get_submodule(f"{stack}.{i}").state_dict() for i in exchangeable[:2])
    for key, tensor in first.items():
        copied = tensor.clone()
        tensor.copy_(second[key])
        second[key].copy_(copied)
    yield wrong
