"""Distillation losses: pure functions of what student and teacher give. Zero when equal, never negative."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from hf_pe.distill.layer_map import uniform

Signals = dict[str, Any]


class Loss(NamedTuple):
    """A loss with the signal it needs and what the card says about it."""

    compute: Callable[[Signals, Signals, float], torch.Tensor]
    needs: str
    title: str
    reference: str


def kl(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, temperature: float) -> torch.Tensor:
    """T^2 KL(teacher || student) of the softened classes, mean over positions that count.

    Hinton et al. 2015, arXiv:1503.02531, section 2. Logits are [..., classes], `mask` is [...] or None.
    """
    log_student = functional.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher.float() / temperature, dim=-1)
    each = functional.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(-1)
    return _mean(each, mask).clamp_min(0) * temperature**2


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


def hidden(student: tuple[torch.Tensor, ...], teacher: tuple[torch.Tensor, ...], mask: torch.Tensor) -> torch.Tensor:
    """Squared difference of hidden states [batch, tokens, width] over the teacher's mean square, layers by `uniform`.

    TinyBERT's hidden loss (Jiao et al. 2020, arXiv:1909.10351, eq. 8) without projection, scaled per layer.

    Raises:
        ValueError: the widths differ.
    """
    if student[0].shape[-1] != teacher[0].shape[-1]:
        raise ValueError(
            f"hidden: expected equal widths, got {student[0].shape[-1]} (student) and {teacher[0].shape[-1]} (teacher)."
        )
    terms = []
    for here, there in uniform(len(student), len(teacher)):
        target = teacher[there].float()
        gap = (student[here].float() - target).square().mean(-1)
        terms.append(_mean(gap, mask) / _mean(target.square().mean(-1), mask))
    return torch.stack(terms).mean()


def _mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is None:
        return values.mean()
    counted = mask.to(values.dtype)
    return (values * counted).sum() / counted.sum().clamp_min(1)


LOSSES = {
    "kl": Loss(
        lambda s, t, temperature: kl(s["logits"], t["logits"], _positions(s), temperature),
        "logits",
        "KL of the logits",
        "https://arxiv.org/abs/1503.02531",
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
        lambda s, t, _: hidden(s["hidden_states"], t["hidden_states"], _tokens(s)),
        "hidden_states",
        "hidden states",
        "https://arxiv.org/abs/1909.10351",
    ),
    "task": Loss(lambda s, t, _: s["loss"], "loss", "task loss", ""),
}
"""All losses by the name recipes use. `task` is the student's own loss on the labels."""


def _positions(signals: Signals) -> torch.Tensor | None:
    """The mask of the logits' positions; None where there is one prediction per example."""
    mask = signals.get("mask")
    return mask if mask is not None and mask.shape == signals["logits"].shape[:-1] else None


def _tokens(signals: Signals) -> torch.Tensor:
    """The mask of the tokens; all where the logits are one position shorter (causal models are not padded here)."""
    states = signals["hidden_states"][0]
    mask = signals["mask"]
    return mask if mask.shape == states.shape[:2] else torch.ones(states.shape[:2], device=states.device)
