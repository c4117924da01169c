"""Which layer of the student learns from which of the teacher.

Indices are of hidden states: 0 is what the embeddings give, the last what the last layer gives.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from hf_pe.weight_transfer import spread_evenly

LayerPairs = list[tuple[int, int]]
"""(student, teacher), both rising."""


class LayerMapping(NamedTuple):
    """How a student's layers learn from those of one teacher.

    Attributes:
        pairs: which hidden state learns from which; None: evenly.
        projections: linear maps of the student's hidden states to the teacher's width, one for each pair; none where
            the widths are equal.
        scales: mean square of the teacher's hidden states, one for each pair, on the rows that were looked at first.
            They must not depend on the batch: a step of several batches would differ from one of a large batch.
        feature_scale: mean square of what the teacher's head reads, where a loss looks at that.
    """

    pairs: LayerPairs | None = None
    projections: Sequence[nn.Module] = ()
    scales: Sequence[torch.Tensor] = ()
    feature_scale: torch.Tensor | None = None


def uniform(student: int, teacher: int) -> LayerPairs:
    """Pair layers spread evenly, as many as both have: first with first, last with last.

    Sun et al. 2019, arXiv:1908.09355, "skip".

    Args:
        student: number of the student's hidden states, the embedding output included.
        teacher: likewise; not fewer than 1.
    """
    both = min(student, teacher)
    return list(zip(spread_evenly(both, student), spread_evenly(both, teacher), strict=True))


def last(student: int, teacher: int) -> LayerPairs:
    """Pair the student's last with the teacher's last, and so on down, as many as both have (Sun et al. 2019, "last").

    Args:
        student, teacher: numbers of hidden states.
    """
    both = min(student, teacher)
    return [(student - both + i, teacher - both + i) for i in range(both)]


def similar(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> LayerPairs:
    """Return rising pairs, as many as both have, whose linear CKA adds up to the most, last with last.

    Kornblith et al. 2019, arXiv:1905.00414, eq. 4.

    Args:
        student: hidden states of the same tokens, [tokens, width] each.
        teacher: likewise, of another width perhaps.
    """
    if len(student) > len(teacher):
        return [(i, j) for j, i in similar(teacher, student)]
    scores = torch.tensor([[_cka(state, target) for target in teacher] for state in student])
    rows, columns = scores.shape
    # best[i, j]: of the first i + 1 of the student's, the last of them with j
    best = torch.full((rows, columns), float("-inf"))
    best[0] = scores[0]
    before = torch.zeros(rows, columns, dtype=torch.long)
    for i in range(1, rows):
        for j in range(i, columns):
            k = int(best[i - 1, :j].argmax())
            before[i, j], best[i, j] = k, best[i - 1, k] + scores[i, j]
    pairs, j = [], columns - 1
    for i in range(rows - 1, -1, -1):
        pairs.append((i, j))
        j = int(before[i, j])
    return pairs[::-1]


def _cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the linear CKA of two representations of the same tokens, [tokens, width] each: 0 to 1."""
    x, y = (states.double() - states.double().mean(0) for states in (x, y))
    alignment = (x.T @ y).square().sum()
    return float(alignment / ((x.T @ x).norm() * (y.T @ y).norm()).clamp_min(1e-30))
