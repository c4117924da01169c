"""Distillation losses: pure functions of what student and teacher give. Zero when equal, never negative."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from hf_pe.distill.layer_map import Pairs, uniform

Signals = dict[str, Any]


class Loss(NamedTuple):
    """A loss with the signal it needs and what the card says about it."""

    compute: Callable[[Signals, Signals, float], torch.Tensor]
    needs: str
    title: str
    reference: str
    each: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor] | None = None
    """Of logits [positions, classes] and a temperature, position by position; None where positions depend on others."""


def kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(teacher || student) of the softened classes: logits [..., classes] to [...].

    Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    here, there = _softened(student, temperature), _softened(teacher, temperature)
    return _kl(there, here) * temperature**2


def reverse_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(student || teacher): the student keeps to what the teacher finds likely (Gu et al. 2024, arXiv:2306.08543,
    eq. 1). Logits [..., classes] to [...]."""
    here, there = _softened(student, temperature), _softened(teacher, temperature)
    return _kl(here, there) * temperature**2


def jsd(student: torch.Tensor, teacher: torch.Tensor, temperature: float, beta: float = 0.5) -> torch.Tensor:
    """T^2 of the generalised Jensen-Shannon divergence: logits [..., classes] to [...].

    beta KL(P || M) + (1 - beta) KL(Q || M) with M = beta P + (1 - beta) Q, P the teacher, Q the student (Agarwal et al.
    2024, arXiv:2306.13649, eq. 1).
    """
    here, there = _softened(student, temperature), _softened(teacher, temperature)
    shares = torch.tensor([beta, 1 - beta], device=here.device).log()
    mixed = torch.logsumexp(torch.stack([there + shares[0], here + shares[1]]), 0)
    return (beta * _kl(there, mixed) + (1 - beta) * _kl(here, mixed)) * temperature**2


def dist(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 (1 - Pearson correlation) of the softened classes, of each position and, over positions, of each class.

    Huang et al. 2022, arXiv:2205.10536, eq. 6 to 9, with both weights 1. Logits [positions, classes] to a number.
    """
    here, there = (_softened(logits, temperature).exp() for logits in (student, teacher))
    inter = 1 - _pearson(here, there).mean()
    intra = 1 - _pearson(here.T, there.T).mean() if len(here) > 1 else inter.new_zeros(())
    return (inter + intra) * temperature**2


def _softened(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return functional.log_softmax(logits.float() / temperature, dim=-1)


def _kl(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL of log-probabilities [..., classes]; rounding below zero is cut off."""
    return (one.exp() * (one - other)).sum(-1).clamp_min(0)


def _pearson(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    one, other = one - one.mean(-1, keepdim=True), other - other.mean(-1, keepdim=True)
    return functional.cosine_similarity(one, other, dim=-1, eps=1e-12)


def cosine(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean of 1 - cosine over embeddings [batch, width] (Sanh et al. 2019, arXiv:1910.01108, section 3)."""
    return (1 - functional.cosine_similarity(student.float(), teacher.float(), dim=-1)).mean().clamp_min(0)


def mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Squared distance of embeddings [batch, width], mean over it (Reimers & Gurevych 2020, arXiv:2004.09813)."""
    return (student.float() - teacher.float()).square().sum(-1).mean()


def similarity(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the similarities within the batch, embeddings [batch, width].

    Tung & Mori 2019, arXiv:1907.09682, with cosines in place of normalised dot products.
    """
    one, other = (functional.normalize(e.float(), dim=-1) for e in (student, teacher))
    return (one @ one.T - other @ other.T).square().mean()


def hidden(
    student: tuple[torch.Tensor, ...],
    teacher: tuple[torch.Tensor, ...],
    mask: torch.Tensor,
    pairs: Pairs | None = None,
    projections: Sequence[nn.Module] = (),
) -> torch.Tensor:
    """Squared difference of hidden states [batch, tokens, width] over the teacher's mean square, mean over pairs.

    TinyBERT's hidden loss (Jiao et al. 2020, arXiv:1909.10351, eq. 8), scaled per layer.

    Args:
        student, teacher: hidden states of all layers.
        mask: tokens that count, [batch, tokens].
        pairs: which learns from which; default `uniform`.
        projections: one for each pair, from the student's width to the teacher's; none where these are equal.

    Raises:
        ValueError: the widths differ, and there are no projections.
    """
    if student[0].shape[-1] != teacher[0].shape[-1] and not projections:
        raise ValueError(
            f"hidden: expected equal widths, got {student[0].shape[-1]} (student) and {teacher[0].shape[-1]} (teacher)."
        )
    terms = []
    for number, (here, there) in enumerate(pairs or uniform(len(student), len(teacher))):
        target = teacher[there].float()
        state = projections[number](student[here]) if projections else student[here]
        gap = (state.float() - target).square().mean(-1)
        terms.append(_mean(gap, mask) / _mean(target.square().mean(-1), mask))
    return torch.stack(terms).mean()


def _mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is None:
        return values.mean()
    counted = mask.to(values.dtype)
    return (values * counted).sum() / counted.sum().clamp_min(1)


def _by_position(each: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor], title: str, paper: str) -> Loss:
    def compute(student: Signals, teacher: Signals, temperature: float) -> torch.Tensor:
        values = each(_counted(student, student), _counted(teacher, student), temperature)
        return values.sum() / max(len(values), 1)

    return Loss(compute, "logits", title, paper, each)


def _counted(signals: Signals, masked: Signals) -> torch.Tensor:
    """Logits [positions, classes] of the positions that count."""
    logits: torch.Tensor = signals["logits"]
    mask = _positions(masked)
    return logits.flatten(0, -2) if mask is None else logits[mask.bool()]


LOSSES = {
    "kl": _by_position(kl, "KL of the logits", "https://arxiv.org/abs/1503.02531"),
    "reverse_kl": _by_position(reverse_kl, "reverse KL of the logits", "https://arxiv.org/abs/2306.08543"),
    "jsd": _by_position(jsd, "Jensen-Shannon divergence of the logits", "https://arxiv.org/abs/2306.13649"),
    "dist": Loss(
        lambda s, t, temperature: dist(_counted(s, s), _counted(t, s), temperature),
        "logits",
        "correlation of the classes (DIST)",
        "https://arxiv.org/abs/2205.10536",
    ),
    "cosine": Loss(
        lambda s, t, _: cosine(s["embeddings"], t["embeddings"]),
        "embeddings",
        "cosine of the embeddings",
        "https://arxiv.org/abs/1910.01108",
    ),
    "mse": Loss(
        lambda s, t, _: mse(s["embeddings"], t["embeddings"]),
        "embeddings",
        "squared distance of the embeddings",
        "https://arxiv.org/abs/2004.09813",
    ),
    "similarity": Loss(
        lambda s, t, _: similarity(s["embeddings"], t["embeddings"]),
        "embeddings",
        "similarities within the batch",
        "https://arxiv.org/abs/1907.09682",
    ),
    "hidden": Loss(
        lambda s, t, _: hidden(
            s["hidden_states"], t["hidden_states"], _tokens(s), s.get("pairs"), s.get("projections", ())
        ),
        "hidden_states",
        "hidden states",
        "https://arxiv.org/abs/1909.10351",
    ),
    "task": Loss(lambda s, t, _: s["loss"], "loss", "task loss", ""),
}
"""All losses by the name recipes use. `task` is the student's own loss on the labels."""


def chunkable() -> list[str]:
    """Losses that look at the logits of one position at a time."""
    return [name for name, loss in LOSSES.items() if loss.each is not None or name == "task"]


def per_token(
    name: str, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float
) -> torch.Tensor:
    """One of `chunkable`, of logits [tokens, classes] and the labels [tokens]: [tokens]."""
    each = LOSSES[name].each
    if each is None:
        return functional.cross_entropy(student.float(), labels, reduction="none")
    return each(student, teacher, temperature)


def _positions(signals: Signals) -> torch.Tensor | None:
    """The mask of the logits' positions; None where there is one prediction per example."""
    mask = signals.get("mask")
    return mask if mask is not None and mask.shape == signals["logits"].shape[:-1] else None


def _tokens(signals: Signals) -> torch.Tensor:
    """The mask of the tokens; all where the logits are one position shorter (causal models are not padded here)."""
    states = signals["hidden_states"][0]
    mask = signals["mask"]
    return mask if mask.shape == states.shape[:2] else torch.ones(states.shape[:2], device=states.device)
