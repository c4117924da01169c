"""Repairs what is left: the maps that read the removed units learn to do without them, in closed form."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from hf_pe.anatomy import Axis, Slot
from hf_pe.prune.statistics import Moments, pooled
from hf_pe.surgery import Kept

RIDGES = (1e1, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Tried from the strongest on, relative to the mean diagonal of the inputs' Gram matrix."""
UNTRIED = 1e-2
"""Where there is only one fold, so that nothing can be tried."""


class Fit(NamedTuple):
    """How a linear map should change.

    Attributes:
        move: [inputs, outputs].
        shift: of its bias, [outputs]; zero where it has none.
        ridge: the one that did best on what it had not seen.
    """

    move: torch.Tensor
    shift: torch.Tensor
    ridge: float


def fit(folds: Sequence[Moments], *, bias: bool) -> Fit:
    """Ridge regression of y on x, the ridge chosen by cross-validation over the folds.

    D = argmin sum ||y - D^T x||^2 + r ||D||^2 = (X^T X + r I)^-1 X^T Y; with a bias both are centred and it takes up
    the difference of the means (Hoerl and Kennard 1970). The larger ridge wins where the error no longer falls.

    Args:
        folds: the moments; see `Moments`. One that no token reached says nothing and is left out.
        bias: whether the map has one that may move.
    """
    folds = [fold for fold in folds if fold.count > 0]
    ridge = UNTRIED
    if len(folds) > 1:
        trials = [(_normal(pooled([f for f in folds if f is not unseen]), bias), unseen.means()) for unseen in folds]
        best = float("inf")
        for candidate in RIDGES:
            error = sum(_error(unseen, *_solve(seen, candidate, bias)) for seen, unseen in trials)
            if error >= best:
                break
            best, ridge = error, candidate
    move, shift = _solve(_normal(pooled(folds), bias), ridge, bias)
    return Fit(move.float(), shift.float(), ridge)


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
    found = fit(parts, bias=bias is not None)
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
        slot.of(after).copy_(weight.movedim(1, dim))
        if bias is not None:
            shift.of(after).copy_(bias)


def _bias(slot: Slot) -> Slot:
    """What is added to the output of a consuming map: beside its weight, or in a stack of its own."""
    name = f"{slot.name.rpartition('.')[0]}.bias" if slot.entry is None else f"{slot.name}_bias"
    return replace(slot, name=name)


Means = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Of x x^T, x y^T, x and y, in float64."""


def _normal(sums: Moments, bias: bool) -> Means:
    """The normal equations: with a bias the two products are centred."""
    gram, cross, x, y = sums.means()
    return (gram - x[:, None] * x, cross - x[:, None] * y, x, y) if bias else (gram, cross, x, y)


def _solve(normal: Means, ridge: float, bias: bool) -> tuple[torch.Tensor, torch.Tensor]:
    gram, cross, x, y = normal
    gram = gram.clone()
    gram.diagonal().add_(ridge * gram.diagonal().mean().clamp_min(1e-12))
    move = torch.cholesky_solve(cross, torch.linalg.cholesky(gram))
    return move, y - x @ move if bias else torch.zeros_like(y)


def _error(means: Means, move: torch.Tensor, shift: torch.Tensor) -> float:
    """Mean of ||y - D^T x - s||^2 over tokens, less what does not depend on D and s."""
    xx, xy, x, y = means
    value = (move * (xx @ move)).sum() - 2 * (move * xy).sum() + 2 * shift @ (x @ move - y) + shift @ shift
    return float(value)
