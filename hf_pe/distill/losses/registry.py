"""Distillation losses: pure functions of what student and teacher give. Zero when equal, never negative."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from hf_pe.distill.attention import Attention
from hf_pe.distill.counts import Unit
from hf_pe.distill.layer_map import Pairs, uniform
from hf_pe.tasks import as_map

Signals = dict[str, Any]


class Settings(NamedTuple):
    """What losses of logits go by."""

    temperature: float = 1.0
    beta: float = 0.5


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
Each = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, Settings], torch.Tensor]
"""Logits [positions, classes] of student and teacher and labels [positions] to values, [positions]."""


class Loss(NamedTuple):
    """A loss with the signal it needs, what it is a mean over, and what the card says about it."""

    compute: Callable[[Signals, Signals, Settings], torch.Tensor]
    needs: str
    mean_over: Unit
    title: str
    reference: str
    each: Each | None = None
    """The same position by position; None where positions depend on each other."""
    sparse: bool = False
    """Whether the teacher's likeliest classes are enough."""


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
    Positions of other batches have no say: with gradient accumulation or several processes, the loss of a step is the
    mean over its batches, each compared within itself.
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

    Rows of other batches have no say: with gradient accumulation or several processes, the loss of a step is the mean
    over its batches, each compared within itself.

    Tung & Mori 2019, arXiv:1907.09682, with cosines in place of normalised dot products.
    """
    one, other = (functional.normalize(e.float(), dim=-1) for e in (student, teacher))
    return (one @ one.T - other @ other.T).square().mean()


def hidden(
    student: tuple[torch.Tensor, ...],
    teacher: tuple[torch.Tensor, ...],
    mask: torch.Tensor | None,
    pairs: Pairs | None = None,
    projections: Sequence[nn.Module] = (),
    scales: Sequence[torch.Tensor] = (),
) -> torch.Tensor:
    """Squared difference of hidden states [batch, tokens, width] over the teacher's mean square, mean over pairs.

    TinyBERT's hidden loss (Jiao et al. 2020, arXiv:1909.10351, eq. 8), scaled per layer. Of feature maps, FitNets'
    hints (Romero et al. 2015, arXiv:1412.6550, eq. 3), on the coarser of the two grids.

    Args:
        student, teacher: hidden states of all layers; or feature maps, see `side_by_side`.
        mask: tokens that count, [batch, tokens]; None: all.
        pairs: which learns from which; default `uniform`.
        projections: one for each pair, from the student's width to the teacher's; none where these are equal.
        scales: the teacher's mean square for each pair; default: that of this batch.

    Raises:
        ValueError: the widths differ, and there are no projections.
    """
    terms = []
    for number, (here, there) in enumerate(pairs or uniform(len(student), len(teacher))):
        state, target = side_by_side(student[here], teacher[there].float())
        if projections:
            state = projections[number](state)
        elif state.shape[-1] != target.shape[-1]:
            raise ValueError(
                f"hidden: expected equal widths, got {state.shape[-1]} (student) and {target.shape[-1]} (teacher)."
            )
        gap = (state.float() - target).square().mean(-1)
        scale = scales[number] if scales else _mean(target.square().mean(-1), mask)
        terms.append(_mean(gap, mask) / scale.to(gap.device).clamp_min(1e-12))
    return torch.stack(terms).mean()


def side_by_side(*states: torch.Tensor) -> list[torch.Tensor]:
    """Hidden states of the same places: [batch, tokens, width] as they are; feature maps (see `as_map`) averaged down
    to the coarsest grid among them, [batch, places, width].
    """
    if any(state.ndim != 4 for state in states):
        return list(states)
    maps = [m for m in map(as_map, states) if m is not None]
    grid = (min(m.shape[2] for m in maps), min(m.shape[3] for m in maps))
    return [functional.adaptive_avg_pool2d(m, grid).flatten(2).mT for m in maps]


def features(student: torch.Tensor, teacher: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    """Squared difference of what the heads read, [places, width], over the teacher's mean square.

    Chen et al. 2022, arXiv:2203.14001, eq. 3: the student's go through a bridge to the teacher's width, and the
    teacher's head is used again.

    Args:
        student, teacher: at the places that count; the loss is 0 where there are none.
        scale: the teacher's mean square; default: that of this batch.
    """
    target = teacher.float()
    scale = _mean_of(target.square()) if scale is None else scale.to(target.device)
    return _mean_of((student.float() - target).square()) / scale.clamp_min(1e-12)


def attention(student: Sequence[Attention], teacher: Sequence[Attention], mask: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of where each token looks, mean over tokens, heads and layers.

    Wang et al. 2020, arXiv:2002.10957, section 3.1, for pairs of layers in place of the last one. Where the numbers of
    heads differ the distributions are means over heads.

    Args:
        student, teacher: one for each pair of layers.
        mask: tokens that count, [batch, tokens].
    """
    terms = []
    for here, there in zip(student, teacher, strict=True):
        one, other = here.weights.float(), there.weights.float()
        if one.shape[1] != other.shape[1]:
            one, other = one.mean(1, keepdim=True), other.mean(1, keepdim=True)
        terms.append(_mean(_divergence(other, one.clamp_min(1e-30).log()).mean(1), mask))
    return torch.stack(terms).mean()


def relations(student: Attention, teacher: Attention, mask: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of softmax(A A^T / sqrt(d)), the sum over A the queries, the keys and the values.

    Wang et al. 2020, arXiv:2012.15828, section 3.1. Heads are joined and split into as many relation heads as both
    widths allow, so that neither the width nor the number of heads need be equal. A token relates to those that may see
    it or that it may see: not to padding, nor to another sequence packed beside it.

    Args:
        student, teacher: of one layer each.
        mask: tokens that count, [batch, tokens].
    """
    near = mask.bool()[:, None, None, :] & mask.bool()[:, None, :, None]
    if teacher.allowed is not None:
        near = near & (teacher.allowed | teacher.allowed.transpose(2, 3))
    near = near | torch.eye(near.shape[-1], dtype=torch.bool, device=near.device)
    terms = []
    for one, other in zip(student[:3], teacher[:3], strict=True):
        heads = math.gcd(one.shape[1] * one.shape[3], other.shape[1] * other.shape[3], other.shape[1])
        here, there = (functional.log_softmax(_related(x, heads, near), -1) for x in (one, other))
        terms.append(_mean(_divergence(there.exp(), here).mean(1), mask))
    return torch.stack(terms).sum()


def _related(x: torch.Tensor, heads: int, near: torch.Tensor) -> torch.Tensor:
    """Scaled products of tokens with each other, [batch, heads, tokens, tokens]."""
    rows, _, tokens, _ = x.shape
    x = x.float().transpose(1, 2).reshape(rows, tokens, heads, -1).transpose(1, 2)
    scores: torch.Tensor = x @ x.transpose(2, 3) / x.shape[-1] ** 0.5
    return scores.masked_fill(~near, -1e30)


def _divergence(wanted: torch.Tensor, logs: torch.Tensor) -> torch.Tensor:
    """KL of probabilities from log-probabilities, [..., classes] to [...]; rounding below zero is cut off."""
    return (torch.xlogy(wanted, wanted) - wanted * logs.clamp_min(-1e4)).sum(-1).clamp_min(0)


def _mean_of(values: torch.Tensor) -> torch.Tensor:
    """Mean of all entries; 0 where there are none."""
    return values.sum() / max(values.numel(), 1)


def _mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is None:
        return values.mean()
    counted = mask.to(values.dtype)
    return (values * counted).sum() / counted.sum().clamp_min(1)


def per_token(
    name: str, student: torch.Tensor, teacher: Logits, labels: torch.Tensor | None, settings: Settings
) -> torch.Tensor:
    """A loss that has `each`, of logits [positions, classes]: [positions].

    Classes that only one of the two has (rows that pad a vocabulary) are left out. Of a teacher of which the likeliest
    classes are known, all others count as one class, in both.
    """
    loss = LOSSES[name]
    assert loss.each is not None
    if not loss.sparse:
        return loss.each(student, student, labels, settings)
    if isinstance(teacher, Top):
        shared = teacher.classes < student.shape[-1]
        classes = teacher.classes.clamp_max(student.shape[-1] - 1)
        here = _softened(student, settings.temperature).gather(-1, classes).masked_fill(~shared, NEVER)
        there = teacher.logs.masked_fill(~shared, NEVER)
        one = settings._replace(temperature=1.0)
        return loss.each(_with_rest(here), _with_rest(there), labels, one) * settings.temperature**2
    both = min(student.shape[-1], teacher.shape[-1])
    return loss.each(student[..., :both], teacher[..., :both], labels, settings)


def agreement(student: torch.Tensor, teacher: Logits) -> torch.Tensor:
    """Whether both find the same class likeliest, of logits [positions, classes]: [positions]."""
    likeliest = teacher.classes[:, 0] if isinstance(teacher, Top) else teacher.argmax(-1)
    return (student.argmax(-1) == likeliest).float()


def _with_rest(logs: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [positions, k] and that of all other classes, [positions, k + 1]."""
    rest = (1 - logs.exp().sum(-1, keepdim=True)).clamp_min(1e-6).log()
    return torch.cat([logs, rest], -1)


def counted(signals: Signals, masked: Signals) -> Any:
    """Logits [positions, classes] of the positions that count; what a cache gives has no others."""
    logits: Logits = signals["logits"]
    if isinstance(logits, Top):
        return logits
    mask = positions(masked)
    if mask is None or signals.get("only_counted"):
        return logits.flatten(0, -2)
    return logits[mask.bool()]


def _divergence_loss(name: str, each: Each, title: str, paper: str) -> Loss:
    def compute(student: Signals, teacher: Signals, settings: Settings) -> torch.Tensor:
        values = per_token(name, counted(student, student), counted(teacher, student), None, settings)
        return _mean_of(values)

    return Loss(compute, "logits", "predictions", title, paper, each, sparse=True)


def _own(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor | None, settings: Settings) -> torch.Tensor:
    assert labels is not None
    return functional.cross_entropy(student.float(), labels, reduction="none")


def _dist(student: Signals, teacher: Signals, settings: Settings) -> torch.Tensor:
    here, there = counted(student, student), counted(teacher, student)
    both = min(here.shape[-1], there.shape[-1])
    if not len(here):
        nothing: torch.Tensor = here.float().sum()
        return nothing
    return dist(here[:, :both], there[:, :both], settings.temperature)


LOSSES = {
    "kl": _divergence_loss(
        "kl", lambda s, t, _, by: kl(s, t, by.temperature), "KL of the logits", "https://arxiv.org/abs/1503.02531"
    ),
    "reverse_kl": _divergence_loss(
        "reverse_kl",
        lambda s, t, _, by: reverse_kl(s, t, by.temperature),
        "reverse KL of the logits",
        "https://arxiv.org/abs/2306.08543",
    ),
    "jsd": _divergence_loss(
        "jsd",
        lambda s, t, _, by: jsd(s, t, by.temperature, by.beta),
        "Jensen-Shannon divergence of the logits",
        "https://arxiv.org/abs/2306.13649",
    ),
    "dist": Loss(_dist, "logits", "batches", "correlation of the classes (DIST)", "https://arxiv.org/abs/2205.10536"),
    "cosine": Loss(
        lambda s, t, _: cosine(s["embeddings"], t["embeddings"]),
        "embeddings",
        "rows",
        "cosine of the embeddings",
        "https://arxiv.org/abs/1910.01108",
    ),
    "mse": Loss(
        lambda s, t, _: mse(s["embeddings"], t["embeddings"]),
        "embeddings",
        "rows",
        "squared distance of the embeddings",
        "https://arxiv.org/abs/2004.09813",
    ),
    "similarity": Loss(
        lambda s, t, _: similarity(s["embeddings"], t["embeddings"]),
        "embeddings",
        "batches",
        "similarities within the batch",
        "https://arxiv.org/abs/1907.09682",
    ),
    "hidden": Loss(
        lambda s, t, _: hidden(
            s["hidden_states"],
            t["hidden_states"],
            s["tokens"],
            s.get("pairs"),
            s.get("projections", ()),
            s.get("scales", ()),
        ),
        "hidden_states",
        "tokens",
        "hidden states",
        "https://arxiv.org/abs/1909.10351",
    ),
    "features": Loss(
        lambda s, t, _: features(places(s["features"], s), places(t["features"], s), s.get("feature_scale")),
        "features",
        "predictions",
        "features before the head, which is reused",
        "https://arxiv.org/abs/2203.14001",
    ),
    "attention": Loss(
        lambda s, t, _: attention(*_paired(s, t), s["tokens"]),
        "attentions",
        "tokens",
        "attention maps",
        "https://arxiv.org/abs/2002.10957",
    ),
    "relations": Loss(
        lambda s, t, _: relations(s["attentions"][-1], t["attentions"][-1], s["tokens"]),
        "attentions",
        "tokens",
        "relations of queries, keys and values (MiniLM)",
        "https://arxiv.org/abs/2012.15828",
    ),
    "task": Loss(
        lambda s, t, _: s["loss"],
        "loss",
        "labels",
        "task loss",
        "",
        _own,
    ),
}
"""All losses by the name recipes use. `task` is the student's own loss on the labels."""


def chunkable() -> list[str]:
    """Losses that look at the logits of one position at a time."""
    return [name for name, loss in LOSSES.items() if loss.each is not None]


def _paired(student: Signals, teacher: Signals) -> tuple[list[Attention], list[Attention]]:
    """The student's layers and those of the teacher that they learn from."""
    here, there = student["attentions"], teacher["attentions"]
    pairs = [(i - 1, j - 1) for i, j in student.get("pairs") or () if i and j]
    if not pairs or max(pairs) != (len(here) - 1, len(there) - 1):
        pairs = [(i, round((i + 1) * len(there) / len(here)) - 1) for i in range(len(here))]
    return [here[i] for i, _ in pairs], [there[j] for _, j in pairs]


def places(features: torch.Tensor, signals: Signals) -> torch.Tensor:
    """Rows [places, width] where the logits count."""
    mask = positions(signals)
    return features.flatten(0, -2) if mask is None else features[mask.bool()]


def positions(signals: Signals) -> torch.Tensor | None:
    """The mask of the logits' positions; None where there is one prediction per example."""
    mask = signals.get("mask")
    return mask if mask is not None and mask.shape == signals["logits"].shape[:-1] else None
