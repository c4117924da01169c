"""Losses on logits: divergences between the classes of teacher and student."""

from typing import NamedTuple

import torch
from torch.nn import functional


class Top(NamedTuple):
    """The likeliest classes of each position, as a cache keeps them.

    Attributes:
        logs: log-probabilities at one temperature, [positions, k], falling.
        classes: which they are, [positions, k].
    """

    logs: torch.Tensor
    classes: torch.Tensor


Logits = torch.Tensor | Top


NEVER = -1e4
"""Log-probability of what does not occur, finite so that differences are."""


def kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(teacher || student) of the softened classes: logits [..., classes] to [...].

    Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    here, there = softened(student, temperature), softened(teacher, temperature)
    return _kl(there, here) * temperature**2


def reverse_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(student || teacher): the student keeps to what the teacher finds likely (Gu et al. 2024, arXiv:2306.08543,
    eq. 1). Logits [..., classes] to [...]."""
    here, there = softened(student, temperature), softened(teacher, temperature)
    return _kl(here, there) * temperature**2


def jsd(student: torch.Tensor, teacher: torch.Tensor, temperature: float, beta: float = 0.5) -> torch.Tensor:
    """T^2 of the generalised Jensen-Shannon divergence: logits [..., classes] to [...].

    beta KL(P || M) + (1 - beta) KL(Q || M) with M = beta P + (1 - beta) Q, P the teacher, Q the student (Agarwal et al.
    2024, arXiv:2306.13649, eq. 1).
    """
    here, there = softened(student, temperature), softened(teacher, temperature)
    shares = torch.tensor([beta, 1 - beta], device=here.device).log()
    mixed = torch.logsumexp(torch.stack([there + shares[0], here + shares[1]]), 0)
    return (beta * _kl(there, mixed) + (1 - beta) * _kl(here, mixed)) * temperature**2


def dist(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 (1 - Pearson correlation) of the softened classes, of each position and, over positions, of each class.

    Huang et al. 2022, arXiv:2205.10536, eq. 6 to 9, with both weights 1. Logits [positions, classes] to a number.
    Positions of other batches have no say: with gradient accumulation or several processes, the loss of a step is the
    mean over its batches, each compared within itself.
    """
    here, there = (softened(logits, temperature).exp() for logits in (student, teacher))
    inter = 1 - _pearson(here, there).mean()
    intra = 1 - _pearson(here.T, there.T).mean() if len(here) > 1 else inter.new_zeros(())
    return (inter + intra) * temperature**2


def softened(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return log-probabilities [..., classes] of logits at a temperature, in float32."""
    return functional.log_softmax(logits.float() / temperature, dim=-1)


def _kl(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL of log-probabilities [..., classes]; rounding below zero is cut off."""
    return (one.exp() * (one - other)).sum(-1).clamp_min(0)


def _pearson(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    one, other = one - one.mean(-1, keepdim=True), other - other.mean(-1, keepdim=True)
    return functional.cosine_similarity(one, other, dim=-1, eps=1e-12)


def agreement(student: torch.Tensor, teacher: Logits) -> torch.Tensor:
    """Whether both find the same class likeliest, of logits [positions, classes]: [positions]."""
    likeliest = teacher.classes[:, 0] if isinstance(teacher, Top) else teacher.argmax(-1)
    return (student.argmax(-1) == likeliest).float()


def with_rest(logs: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [positions, k] and that of all other classes, [positions, k + 1]."""
    rest = (1 - logs.exp().sum(-1, keepdim=True)).clamp_min(1e-6).log()
    return torch.cat([logs, rest], -1)
