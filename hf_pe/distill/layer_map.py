"""Chooses which hidden state of the student learns from which hidden state of the teacher.

Indices are those of `hidden_states` in transformers: 0 is the output of the embeddings, the last one that of the last
layer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from hf_pe.weight_transfer import spread_evenly

LayerPairs = list[tuple[int, int]]
"""Pairs of indices (student, teacher), both rising."""


class LayerMapping(NamedTuple):
    """Says how a student's layers learn from those of one teacher.

    Attributes:
        pairs: which hidden state learns from which; None for evenly spread pairs.
        projections: linear maps of the student's hidden states to the teacher's width, one for each pair; empty if the
            widths are equal.
        scales: mean square of the teacher's hidden states for each pair, on rows that are the same for the whole
            training. If they depended on the batch, a step of several batches would differ from one of a large batch.
        feature_scale: mean square of the inputs of the teacher's head, if a loss compares these.
    """

    pairs: LayerPairs | None = None
    projections: Sequence[nn.Module] = ()
    scales: Sequence[torch.Tensor] = ()
    feature_scale: torch.Tensor | None = None


def uniform(student: int, teacher: int) -> LayerPairs:
    """Return evenly spread pairs, as many as the shallower model has hidden states: first with first, last with last.

    It is the mapping "skip" of Sun et al. 2019, arXiv:1908.09355.

    Args:
        student: number of the student's hidden states, the embedding output included.
        teacher: number of the teacher's hidden states; at least 1.
    """
    count = min(student, teacher)
    return list(zip(spread_evenly(count, student), spread_evenly(count, teacher), strict=True))


def last(student: int, teacher: int) -> LayerPairs:
    """Return the pairs of the last hidden states, as many as the shallower model has (Sun et al. 2019, "last").

    Args:
        student: number of the student's hidden states.
        teacher: number of the teacher's hidden states.
    """
    count = min(student, teacher)
    return [(student - count + i, teacher - count + i) for i in range(count)]


def similar(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> LayerPairs:
    """Return the rising pairs with the largest sum of linear CKA, as many as the shallower model has hidden states.

    CKA is a similarity of representations (Kornblith et al. 2019, arXiv:1905.00414, eq. 4). The last hidden states are
    always a pair.

    Args:
        student: hidden states. *Shape:* (tokens, width) each
        teacher: hidden states of the same tokens, possibly of another width. *Shape:* (tokens, width) each
    """
    if len(student) > len(teacher):
        return [(i, j) for j, i in similar(teacher, student)]
    scores = torch.tensor([[_cka(state, target) for target in teacher] for state in student])
    rows, columns = scores.shape
    # best[i, j]: largest sum for the student's first i + 1 states, the last of them paired with j
    best = torch.full((rows, columns), float("-inf"))
    best[0] = scores[0]
    previous = torch.zeros(rows, columns, dtype=torch.long)
    for i in range(1, rows):
        for j in range(i, columns):
            k = int(best[i - 1, :j].argmax())
            previous[i, j], best[i, j] = k, best[i - 1, k] + scores[i, j]
    pairs, j = [], columns - 1
    for i in range(rows - 1, -1, -1):
        pairs.append((i, j))
        j = int(previous[i, j])
    return pairs[::-1]


def _cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the linear CKA of two representations of the same tokens, [tokens, width] each: 0 to 1."""
    x, y = (states.double() - states.double().mean(0) for states in (x, y))
    alignment = (x.T @ y).square().sum()
    return float(alignment / ((x.T @ x).norm() * (y.T @ y).norm()).clamp_min(1e-30))
