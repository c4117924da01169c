"""The inside of attention heads in another basis: what carries most comes first, so that the rest may go.

Where heads are as wide as the hidden width allows (BERT, BART, GPT-2), a smaller width makes them narrower. Scores are
products q^T k, and what a head adds is W_o v: both stay the same when query and key, value and output map are turned
against each other. The bases chosen here are those in which dropping the last coordinates costs least: a singular value
decomposition of what is multiplied, weighted by the second moments on calibration data (as Yuan et al. 2023,
arXiv:2312.05821, do for single maps).
"""

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from hf_pe.anatomy import EVERYWHERE, Axis, Slot, asks
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.errors import UsageError
from hf_pe.regression import Moments, pooled

TOLERANCE = 1e-3
"""Largest relative difference in float32 between the model and itself in the other basis."""
JITTER = 1e-6
"""Of the mean diagonal, added to second moments that fewer tokens than coordinates made."""


@torch.no_grad()
def turned(
    model: PreTrainedModel, axis: Axis, moments: Mapping[str, list[Moments]]
) -> tuple[PreTrainedModel, dict[str, list[Moments]]]:
    """The same function with the coordinates of every head in the order of what they carry, and its own moments.

    Args:
        model: is not changed.
        axis: its hidden width, whose groups besides the stream are the insides of attentions.
        moments: of what flows into every map that reads units of `axis`, by slot.

    Raises:
        UsageError: an attention does more with its queries, keys or values than to multiply them.
    """
    new = copy.deepcopy(model).eval()
    state, own = new.state_dict(), {key: list(folds) for key, folds in moments.items()}
    for group in axis.groups:
        if group != EVERYWHERE:
            _turn_(state, axis, group, own)
    inputs = example_inputs(model)
    if not difference(outputs_of(model, inputs), outputs_of(new, inputs)) <= TOLERANCE:
        raise UsageError(
            f"prune.{axis.name}: the heads of {type(model).__name__} do more with queries, keys and values than to "
            "multiply them, so they cannot be made narrower. Leave this axis out."
        )
    return new, own


class _Rows(NamedTuple):
    """What makes queries, keys or values: a map's weight [outputs, inputs] and bias as they lie in the model, and which
    outputs they are, in the order of heads and coordinates."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    places: torch.Tensor
    moments: Moments

    def get(self, heads: int) -> torch.Tensor:
        """[heads, size, inputs + 1], the last column the bias."""
        rows = self.weight[self.places].double()
        shift = self.bias[self.places].double() if self.bias is not None else rows.new_zeros(len(rows))
        return torch.cat([rows, shift[:, None]], dim=1).reshape(heads, -1, rows.shape[1] + 1)

    def put(self, rows: torch.Tensor) -> None:
        """In place."""
        flat = rows.flatten(0, 1)
        self.weight[self.places] = flat[:, :-1].to(self.weight.dtype)
        if self.bias is not None:
            self.bias[self.places] = flat[:, -1].to(self.bias.dtype)

    def second(self, rows: torch.Tensor) -> torch.Tensor:
        """Second moments of the outputs of `rows`, [heads, size, size]."""
        sums = self.moments.x[:, None].double()
        count = torch.full((1, 1), self.moments.count, dtype=torch.float64, device=sums.device)
        inputs = torch.cat([torch.cat([self.moments.xx.double(), sums], 1), torch.cat([sums.T, count], 1)])
        return rows @ (inputs / self.moments.count) @ rows.mT


def _turn_(state: Mapping[str, torch.Tensor], axis: Axis, group: str, moments: dict[str, list[Moments]]) -> None:
    """In place in `state`. Scores: with E[q q^T] = R_q^T R_q, E[k k^T] = R_k^T R_k and R_q R_k^T = U S V^T, queries
    become S^1/2 U^T R_q^-T q and keys S^1/2 V^T R_k^-T k. Values: with E[a a^T] = L L^T, a what a head gives, and W_o L
    = U S V^T, values become V^T L^-1 v and the output map U S."""
    slots = axis.in_group(group)
    heads = slots[0].subgroups * max(slot.powered_parts for slot in slots)
    (answer,) = (slot for slot in slots if slot.consumes)
    query, key, value = _asking(state, axis, [slot for slot in slots if not slot.consumes], moments)
    asked, offered, given = (each.get(heads) for each in (query, key, value))
    root_q, root_k = _root(query.second(asked)), _root(key.second(offered))
    left, spread, right = torch.linalg.svd(root_q @ root_k.mT)
    scale = spread.sqrt()[..., None]
    query.put(scale * left.mT @ torch.linalg.solve_triangular(root_q.mT, asked, upper=False))
    key.put(scale * right @ torch.linalg.solve_triangular(root_k.mT, offered, upper=False))
    out = answer.of(state).movedim(answer.dim or 0, 0)  # [inputs, outputs], a view
    read = out.double().reshape(heads, -1, out.shape[1]).mT  # [heads, outputs, size]
    gram = pooled(moments[answer.key]).gram.double()
    size = len(out) // heads
    within = torch.stack([gram[h * size : (h + 1) * size, h * size : (h + 1) * size] for h in range(heads)])
    lower = _root(within).mT
    left, spread, right = torch.linalg.svd(read @ lower, full_matrices=False)
    value.put(right @ torch.linalg.solve_triangular(lower, given, upper=False))
    out.copy_((left * spread[:, None, :]).mT.reshape(out.shape))
    eye = torch.eye(size, dtype=lower.dtype, device=lower.device).expand_as(lower)
    turns = (right @ torch.linalg.solve_triangular(lower, eye, upper=False)).float()
    turn: torch.Tensor = torch.block_diag(*turns)  # type: ignore[no-untyped-call]
    moments[answer.key] = [f.in_basis(turn) for f in moments[answer.key]]


def _asking(
    state: Mapping[str, torch.Tensor],
    axis: Axis,
    slots: Sequence[Slot],
    moments: Mapping[str, list[Moments]],
) -> list[_Rows]:
    """What makes queries, keys and values, in this order."""
    found = []
    for slot in slots:
        weight = slot.of(state)
        if weight.ndim != 2:
            continue
        place = slot.name.rpartition(".")[0]
        bias = next((s.of(state) for s in slots if s.name.rpartition(".")[0] == place and s.of(state).ndim == 1), None)
        reading = next(s for s in axis.slots if s.name == slot.name and s.dim != slot.dim)
        seen = pooled(moments[reading.key])
        for first in range(0, len(slot.layout.parts), slot.powered_parts):
            parts = [slot.layout.part_positions(first + i, axis.size) for i in range(slot.powered_parts)]
            places = torch.cat(parts).to(weight.device)
            found.append((not asks(slot.name), _Rows(weight.movedim(slot.dim or 0, 0), bias, places, seen)))
    return [rows for _, rows in sorted(found, key=lambda each: each[0])]  # keys come before values in every model


def _root(second: torch.Tensor) -> torch.Tensor:
    """R, upper, of M = R^T R, [..., size, size]."""
    mean = second.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp_min(1e-30)
    eye = torch.eye(second.shape[-1], dtype=second.dtype, device=second.device)
    factor: torch.Tensor = torch.linalg.cholesky(second + JITTER * mean * eye, upper=True)
    return factor
