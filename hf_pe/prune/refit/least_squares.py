"""Repairs what is left: the maps that read the removed units learn to do without them, in closed form."""

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
    """Best weights on the kept inputs to give the map's own output: W' = W_S + W_R G_RS (G_SS + r I)^-1.

    Args:
        weight: [outputs, inputs].
        bias: [outputs] or None.
        folds: moments of all inputs.
        kept: kept input indices, rising.

    Returns:
        weight [outputs, kept] and bias, in float32.
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
    found = fit(parts, bias=bias is not None, by_size=CHANGE)
    new = weight[:, kept].float() + found.move.T
    return new, None if bias is None else bias.float() + found.shift


def refit_(
    smaller: PreTrainedModel,
    model: PreTrainedModel,
    axis: Axis,
    kept: Kept,
    moments: dict[str, list[Moments]],
) -> None:
    """Rewrite the consuming maps of `smaller` in place from the full ones of `model`; those without moments stay."""
    before, after = model.state_dict(), smaller.state_dict()
    written: dict[tuple[str, int | None], list[Slot]] = {}
    for slot in axis.slots:
        written.setdefault((slot.name, slot.entry), []).append(slot)
    for slot in axis.slots:
        if not slot.consumes or slot.key not in moments:
            continue
        dim = slot.dim or 0
        shift = _bias(slot)
        weight, bias = without_removed(
            slot.of(before).movedim(dim, 1),
            shift.of(before) if shift.name in before else None,
            moments[slot.key],
            slot.layout.places(torch.as_tensor(kept[slot.group]), axis.size),
        )
        for other in written[slot.name, slot.entry]:  # what the map writes may be cut as well
            weight = weight if other is slot else narrowed(weight, replace(other, dim=0), axis, kept)
        slot.of(after).copy_(weight.movedim(1, dim))
        if bias is not None:
            for other in written.get((shift.name, shift.entry), []):
                bias = narrowed(bias, other, axis, kept)
            shift.of(after).copy_(bias)


def _bias(slot: Slot) -> Slot:
    """What is added to the output of a consuming map: beside its weight, or in a stack of its own."""
    name = f"{slot.name.rpartition('.')[0]}.bias" if slot.entry is None else f"{slot.name}_bias"
    return replace(slot, name=name)
