"""Losses on logits: divergences between the class probabilities of teacher and student."""

from typing import NamedTuple

import torch
from torch.nn import functional


class TopKLogits(NamedTuple):
    """Holds the k most likely classes of each position, as a cache stores them.

    Attributes:
        log_probs: log-probabilities at one temperature, in falling order. *Shape:* (positions, k)
        classes: the classes that they belong to. *Shape:* (positions, k)
    """

    log_probs: torch.Tensor
    classes: torch.Tensor

    def part(self, positions: slice) -> "TopKLogits":
        """Return the classes of a slice of the positions."""
        return TopKLogits(self.log_probs[positions], self.classes[positions])


Logits = torch.Tensor | TopKLogits


NEVER = -1e4
"""Log-probability of a class that does not occur; it is finite so that differences are finite too."""


def kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the Kullback-Leibler divergence of the student from the teacher, T^2 KL(P || Q).

    P and Q are the softmax of the teacher's and the student's logits divided by the temperature T. The factor T^2 keeps
    gradients of the same size (Hinton et al. 2015, arXiv:1503.02531, section 2).

    Args:
        student: logits. *Shape:* (..., classes)
        teacher: logits. *Shape:* (..., classes)
        temperature: T.

    Returns:
        *Shape:* (...)

    Example:
        >>> teacher = torch.tensor([[0.8, 0.2], [0.5, 0.5]]).log()  # 0.8 ln(0.8 / 0.5) + 0.2 ln(0.2 / 0.5) = 0.1927
        >>> kl(torch.zeros(2, 2), teacher, temperature=1.0)
        tensor([0.1927, 0.0000])
    """
    own, target = softened(student, temperature), softened(teacher, temperature)
    return _kl(target, own) * temperature**2


def reverse_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the reverse Kullback-Leibler divergence T^2 KL(Q || P), with P of the teacher and Q of the student.

    It makes the student avoid classes that the teacher finds unlikely (Gu et al. 2024, arXiv:2306.08543, eq. 1).

    Args:
        student: logits. *Shape:* (..., classes)
        teacher: logits. *Shape:* (..., classes)
        temperature: T.

    Returns:
        *Shape:* (...)

    Example:
        >>> teacher = torch.tensor([[0.8, 0.2]]).log()
        >>> reverse_kl(torch.zeros(1, 2), teacher, temperature=1.0)  # ln(0.5 / 0.8) / 2 + ln(0.5 / 0.2) / 2
        tensor([0.2231])
    """
    own, target = softened(student, temperature), softened(teacher, temperature)
    return _kl(own, target) * temperature**2


def jsd(student: torch.Tensor, teacher: torch.Tensor, temperature: float, beta: float = 0.5) -> torch.Tensor:
    """Return T^2 times the generalised Jensen-Shannon divergence.

    It is beta KL(P || M) + (1 - beta) KL(Q || M) with M = beta P + (1 - beta) Q, P of the teacher and Q of the student
    (Agarwal et al. 2024, arXiv:2306.13649, eq. 1). It is at most the entropy of (beta, 1 - beta), and so at most ln 2,
    times T^2.

    Args:
        student: logits. *Shape:* (..., classes)
        teacher: logits. *Shape:* (..., classes)
        temperature: T.
        beta: near 0 the divergence is proportional to forward KL, near 1 to reverse KL.

    Returns:
        *Shape:* (...)

    Example:
        >>> jsd(torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]]), temperature=1.0)  # ln 2
        tensor([0.6931])
    """
    own, target = softened(student, temperature), softened(teacher, temperature)
    logs = torch.tensor([beta, 1 - beta], device=own.device).log()
    mixture = torch.logsumexp(torch.stack([target + logs[0], own + logs[1]]), 0)
    return (beta * _kl(target, mixture) + (1 - beta) * _kl(own, mixture)) * temperature**2


def dist(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return T^2 (1 - Pearson correlation) of class probabilities: of each position and, over positions, of each class.

    Huang et al. 2022, arXiv:2205.10536, eq. 6 to 9, with both weights 1. Only positions of the same batch are compared:
    with gradient accumulation or several processes, the loss of a step is the mean over its batches.

    Args:
        student: logits. *Shape:* (positions, classes)
        teacher: logits. *Shape:* (positions, classes)
        temperature: T.

    Returns:
        *Shape:* ()

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0]])
        >>> round(float(dist(logits + 5, logits, temperature=1.0)), 4)
        0.0
    """
    own, target = (softened(logits, temperature).exp() for logits in (student, teacher))
    inter = 1 - _pearson(own, target).mean()
    intra = 1 - _pearson(own.T, target.T).mean() if len(own) > 1 else inter.new_zeros(())
    return (inter + intra) * temperature**2


def softened(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return log-probabilities [..., classes] of logits at a temperature, in float32."""
    return functional.log_softmax(logits.float() / temperature, dim=-1)


def _kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return KL(P || Q) of log-probabilities [..., classes]; values that rounding makes negative become 0."""
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0)


def _pearson(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    return functional.cosine_similarity(x, y, dim=-1, eps=1e-12)


def agrees(student: torch.Tensor, teacher: Logits) -> torch.Tensor:
    """Return 1 for positions at which the largest logits of both belong to the same class, else 0.

    Args:
        student: logits. *Shape:* (positions, classes)
        teacher: logits. *Shape:* (positions, classes)

    Returns:
        *Shape:* (positions,)
    """
    teacher_classes = teacher.classes[:, 0] if isinstance(teacher, TopKLogits) else teacher.argmax(-1)
    return (student.argmax(-1) == teacher_classes).float()


def with_rest(logs: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities [positions, k] with that of all other classes together behind: [positions, k + 1]."""
    rest = (1 - logs.exp().sum(-1, keepdim=True)).clamp_min(1e-6).log()
    return torch.cat([logs, rest], -1)
