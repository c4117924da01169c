"""Refit the linear layers that read pruned units, so that they return their original output from the kept units alone.

Each layer is refitted by itself, in closed form, from the second moments of its inputs (Gram matrix G).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from hf_pe.anatomy import Axis, Slot
from hf_pe.anatomy.axis import Kept
from hf_pe.regression import CHANGE, Moments, fit
from hf_pe.surgery import narrowed


def without_removed(
    weight: torch.Tensor, bias: torch.Tensor | None, folds: Sequence[Moments], kept: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the weights on the kept inputs that come nearest to the layer's original output.

    With S the kept and R the removed inputs, G the Gram matrix of all, and r the ridge that `hf_pe.regression` chooses,

        W' = W_S + W_R G_RS (G_SS + r I)^-1

    Args:
        weight: W. *Shape:* (outputs, inputs)
        bias: of the layer, or None. *Shape:* (outputs,)
        folds: moments of all inputs, one for each fold.
        kept: indices of the kept inputs, rising.

    Returns:
        The weight W', *Shape:* (outputs, kept inputs), and the bias, in float32.
    """
    removed = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    removed[kept] = False
    lost = weight[:, removed].double().T
    parts = [
        Moments(
            f.xx[kept][:, kept], f.xx[kept][:, removed].double() @ lost, f.x[kept], f.x[removed] @ lost.float(), f.count
        )
        for f in folds
    ]
    change = fit(parts, bias=bias is not None, by_size=CHANGE)
    return weight[:, kept].float() + change.move.T, None if bias is None else bias.float() + change.shift


def refit_(
    smaller: PreTrainedModel,
    model: PreTrainedModel,
    axis: Axis,
    kept: Kept,
    moments: dict[str, list[Moments]],
) -> None:
    """Refit the linear layers of `smaller` that read the units of an axis, in place.

    Args:
        smaller: the model cut along `axis`.
        model: the model before this cut.
        axis: the axis.
        kept: the kept units of each group.
        moments: second moments of the layers' inputs in `model`, by slot; a layer without them stays as it is.
    """
    before, after = model.state_dict(), smaller.state_dict()
    slots_of: dict[tuple[str, int | None], list[Slot]] = {}
    for slot in axis.slots:
        slots_of.setdefault((slot.name, slot.entry), []).append(slot)
    for slot in axis.slots:
        if not slot.consumes or slot.key not in moments:
            continue
        dim = slot.dim or 0
        bias_slot = _bias(slot)
        weight, bias = without_removed(
            slot.of(before).movedim(dim, 1),
            bias_slot.of(before) if bias_slot.name in before else None,
            moments[slot.key],
            slot.layout.positions(torch.as_tensor(kept[slot.group]), axis.size),
        )
        for output in slots_of[slot.name, slot.entry]:  # the layer's outputs may be cut as well
            weight = weight if output is slot else narrowed(weight, replace(output, dim=0), axis, kept)
        slot.of(after).copy_(weight.movedim(1, dim))
        if bias is not None:
            for output in slots_of.get((bias_slot.name, bias_slot.entry), []):
                bias = narrowed(bias, output, axis, kept)
            bias_slot.of(after).copy_(bias)


def _bias(slot: Slot) -> Slot:
    """Return the slot of a layer's bias, from that of its weight: beside it, or in a stack of its own for experts."""
    name = f"{slot.name.rpartition('.')[0]}.bias" if slot.entry is None else f"{slot.name}_bias"
    return replace(slot, name=name)
