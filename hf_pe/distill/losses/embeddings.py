"""Losses on sentence embeddings."""

import torch
from torch.nn import functional


def cosine(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the mean of 1 - cosine of two embeddings (Sanh et al. 2019, arXiv:1910.01108, section 3).

    Args:
        student: embeddings. *Shape:* (batch, width)
        teacher: embeddings. *Shape:* (batch, width)

    Returns:
        *Shape:* ()

    Example:
        >>> cosine(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
        tensor(0.5000)
    """
    return (1 - functional.cosine_similarity(student.float(), teacher.float(), dim=-1)).mean().clamp_min(0)


def mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the mean squared distance of two embeddings (Reimers & Gurevych 2020, arXiv:2004.09813).

    Args:
        student: embeddings. *Shape:* (batch, width)
        teacher: embeddings. *Shape:* (batch, width)

    Returns:
        *Shape:* ()

    Example:
        >>> mse(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
        tensor(25.)
    """
    return (student.float() - teacher.float()).square().sum(-1).mean()


def similarity(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference of the cosines of all pairs of rows within the batch.

    Tung & Mori 2019, arXiv:1907.09682, with cosines instead of normalised dot products. The widths of student and
    teacher may differ. Only rows of the same batch are compared: with gradient accumulation or several processes, the
    loss of a step is the mean over its batches.

    Args:
        student: embeddings. *Shape:* (batch, width)
        teacher: embeddings. *Shape:* (batch, teacher's width)

    Returns:
        *Shape:* ()

    Example:
        >>> similarity(torch.eye(2), torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))  # cosine 0 in place of 1, twice
        tensor(0.5000)
    """
    own, target = (functional.normalize(e.float(), dim=-1) for e in (student, teacher))
    return (own @ own.T - target @ target.T).square().mean()
