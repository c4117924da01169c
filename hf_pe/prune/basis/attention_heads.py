"""Change the basis inside attention heads so that their most important coordinates come first.

Where the size of a head is the hidden width over the number of heads (BERT, BART, GPT-2), a smaller width makes heads
narrower. Attention scores are products q^T k, and a head's output is W_o v: both stay the same if queries and keys, or
values and output projection, change their basis together. The bases chosen here are those in which dropping the last
coordinates costs least: a singular value decomposition of the two factors, each multiplied by a root of its second
moments on calibration data (as Yuan et al. 2023, arXiv:2312.05821, do for single layers).
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
"""Largest relative difference in float32 between the outputs before and after a change of basis."""
JITTER = 1e-6
"""Added to the diagonal of second moments, relative to its mean: with few tokens they may be singular."""


@torch.no_grad()
def with_sorted_heads(
    model: PreTrainedModel, axis: Axis, moments: Mapping[str, list[Moments]]
) -> tuple[PreTrainedModel, dict[str, list[Moments]]]:
    """Return a model with the same outputs, in which the coordinates of every head are sorted by importance.

    Args:
        model: the model; it is not changed.
        axis: its hidden width; the groups besides the residual stream are the insides of attention modules.
        moments: second moments of the inputs of every linear layer that reads units of `axis`, by slot.

    Returns:
        The new model, and the moments in its basis.

    Raises:
        UsageError: an attention module does more with queries, keys or values than to multiply them.
    """
    new = copy.deepcopy(model).eval()
    state, own = new.state_dict(), {key: list(folds) for key, folds in moments.items()}
    for group in axis.groups:
        if group != EVERYWHERE:
            _sort_heads_(state, axis, group, own)
    inputs = example_inputs(model)
    if not difference(outputs_of(model, inputs), outputs_of(new, inputs)) <= TOLERANCE:
        raise UsageError(
            f"prune.{axis.name}: the heads of {type(model).__name__} do more with queries, keys and values than to "
            "multiply them, so they cannot be made narrower. Leave this axis out."
        )
    return new, own


class _Rows(NamedTuple):
    """The rows of a linear layer that compute queries, keys or values.

    Attributes:
        weight: the layer's weight, as it lies in the model. *Shape:* (outputs, inputs)
        bias: its bias, if any. *Shape:* (outputs,)
        indices: of the rows, in the order of heads and coordinates.
        moments: second moments of the layer's inputs.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    indices: torch.Tensor
    moments: Moments

    def get(self, heads: int) -> torch.Tensor:
        """Return the rows as [heads, size, inputs + 1], with the bias as the last column."""
        rows = self.weight[self.indices].double()
        bias = self.bias[self.indices].double() if self.bias is not None else rows.new_zeros(len(rows))
        return torch.cat([rows, bias[:, None]], dim=1).reshape(heads, -1, rows.shape[1] + 1)

    def put(self, rows: torch.Tensor) -> None:
        """Write rows as `get` returns them into the model."""
        flat = rows.flatten(0, 1)
        self.weight[self.indices] = flat[:, :-1].to(self.weight.dtype)
        if self.bias is not None:
            self.bias[self.indices] = flat[:, -1].to(self.bias.dtype)

    def second(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the second moments of the outputs of `rows`, [heads, size, size]."""
        sums = self.moments.x[:, None].double()
        count = torch.full((1, 1), self.moments.count, dtype=torch.float64, device=sums.device)
        inputs = torch.cat([torch.cat([self.moments.xx.double(), sums], 1), torch.cat([sums.T, count], 1)])
        return rows @ (inputs / self.moments.count) @ rows.mT


def _sort_heads_(state: Mapping[str, torch.Tensor], axis: Axis, group: str, moments: dict[str, list[Moments]]) -> None:
    """Change the basis of the heads in one group, in place in `state` and `moments`.

    Queries and keys: with E[q q^T] = R_q^T R_q, E[k k^T] = R_k^T R_k and the singular value decomposition
    R_q R_k^T = U S V^T, queries become S^1/2 U^T R_q^-T q and keys S^1/2 V^T R_k^-T k. Values: with a the mean of
    values that a head takes by its attention, E[a a^T] = L L^T and W_o L = U S V^T, values become V^T L^-1 v and the
    output projection U S.
    """
    slots = axis.in_group(group)
    heads = slots[0].subgroups * max(slot.powered_parts for slot in slots)
    (output,) = (slot for slot in slots if slot.consumes)
    query, key, value = _projections(state, axis, [slot for slot in slots if not slot.consumes], moments)
    queries, keys, values = (rows.get(heads) for rows in (query, key, value))
    root_q, root_k = _root(query.second(queries)), _root(key.second(keys))
    left, spread, right = torch.linalg.svd(root_q @ root_k.mT)
    scale = spread.sqrt()[..., None]
    query.put(scale * left.mT @ torch.linalg.solve_triangular(root_q.mT, queries, upper=False))
    key.put(scale * right @ torch.linalg.solve_triangular(root_k.mT, keys, upper=False))
    out = output.of(state).movedim(output.dim or 0, 0)  # [inputs, outputs], a view
    by_head = out.double().reshape(heads, -1, out.shape[1]).mT  # [heads, outputs, size]
    gram = pooled(moments[output.key]).gram.double()
    size = len(out) // heads
    head_grams = torch.stack([gram[h * size : (h + 1) * size, h * size : (h + 1) * size] for h in range(heads)])
    lower = _root(head_grams).mT
    left, spread, right = torch.linalg.svd(by_head @ lower, full_matrices=False)
    value.put(right @ torch.linalg.solve_triangular(lower, values, upper=False))
    out.copy_((left * spread[:, None, :]).mT.reshape(out.shape))
    eye = torch.eye(size, dtype=lower.dtype, device=lower.device).expand_as(lower)
    head_bases = (right @ torch.linalg.solve_triangular(lower, eye, upper=False)).float()
    basis: torch.Tensor = torch.block_diag(*head_bases)  # type: ignore[no-untyped-call]
    moments[output.key] = [fold.in_basis(basis) for fold in moments[output.key]]


def _projections(
    state: Mapping[str, torch.Tensor],
    axis: Axis,
    slots: Sequence[Slot],
    moments: Mapping[str, list[Moments]],
) -> list[_Rows]:
    """Return the rows that compute queries, keys and values, in this order."""
    projections = []
    for slot in slots:
        weight = slot.of(state)
        if weight.ndim != 2:
            continue
        owner = slot.name.rpartition(".")[0]
        bias = next((s.of(state) for s in slots if s.name.rpartition(".")[0] == owner and s.of(state).ndim == 1), None)
        reading = next(s for s in axis.slots if s.name == slot.name and s.dim != slot.dim)
        inputs = pooled(moments[reading.key])
        for first in range(0, len(slot.layout.parts), slot.powered_parts):
            parts = [slot.layout.part_positions(first + i, axis.size) for i in range(slot.powered_parts)]
            indices = torch.cat(parts).to(weight.device)
            projections.append((not asks(slot.name), _Rows(weight.movedim(slot.dim or 0, 0), bias, indices, inputs)))
    return [rows for _, rows in sorted(projections, key=lambda pair: pair[0])]  # keys precede values in every model


def _root(second: torch.Tensor) -> torch.Tensor:
    """Return the upper triangular R with M = R^T R, for M of shape [..., size, size]."""
    mean = second.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp_min(1e-30)
    eye = torch.eye(second.shape[-1], dtype=second.dtype, device=second.device)
    factor: torch.Tensor = torch.linalg.cholesky(second + JITTER * mean * eye, upper=True)
    return factor
