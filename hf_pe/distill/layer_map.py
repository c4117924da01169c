"""Which layer of the student learns from which of the teacher.

Indices are of hidden states: 0 is what the embeddings give, the last what the last layer gives.
"""

from collections.abc import Sequence

import torch

from hf_pe.weight_transfer import spread

Pairs = list[tuple[int, int]]
"""(student, teacher), both rising."""


def uniform(student: int, teacher: int) -> Pairs:
    """Spread evenly, as many as both have: first with first, last with last.

    Sun et al. 2019, arXiv:1908.09355, "skip".

    Args:
        student: number of the student's hidden states, the embedding output included.
        teacher: likewise; not fewer than 1.
    """
    both = min(student, teacher)
    return list(zip(spread(both, student), spread(both, teacher), strict=True))


def last(student: int, teacher: int) -> Pairs:
    """The student's last with the teacher's last, and so on down, as many as both have (Sun et al. 2019, "last").

    Args:
        student, teacher: numbers of hidden states.
    """
    both = min(student, teacher)
    return [(student - both + i, teacher - both + i) for i in range(both)]


def similar(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> Pairs:
    """Rising pairs, as many as both have, whose linear CKA adds up to the most, last with last.

    Kornblith et al. 2019, arXiv:1905.00414, eq. 4.

    Args:
        student: hidden states of the same tokens, [tokens, width] each.
        teacher: likewise, of another width perhaps.
    """
    if len(student) > len(teacher):
        return [(here, there) for there, here in similar(teacher, student)]
    scores = torch.tensor([[_cka(here, there) for there in teacher] for here in student])
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


def _cka(one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = (x.double() - x.double().mean(0) for x in (one, other))
    alike = (one.T @ other).square().sum()
    return float(alike / ((one.T @ one).norm() * (other.T @ other).norm()).clamp_min(1e-30))
