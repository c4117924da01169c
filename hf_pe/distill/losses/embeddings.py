"""Losses on sentence embeddings."""

import torch
from torch.nn import functional


def cosine(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean of 1 - cosine over embeddings [batch, width] (Sanh et al. 2019, arXiv:1910.01108, section 3)."""
    return (1 - functional.cosine_similarity(student.float(), teacher.float(), dim=-1)).mean().clamp_min(0)


def mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Squared distance of embeddings [batch, width], mean over it (Reimers & Gurevych 2020, arXiv:2004.09813)."""
    return (student.float() - teacher.float()).square().sum(-1).mean()


def similarity(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the similarities within the batch, embeddings [batch, width].

    Rows of other batches have no say: with gradient accumulation or several processes, the loss of a step is the mean
    over its batches, each compared within itself.

    Tung & Mori 2019, arXiv:1907.09682, with cosines in place of normalised dot products.
    """
    one, other = (functional.normalize(e.float(), dim=-1) for e in (student, teacher))
    return (one @ one.T - other @ other.T).square().mean()
