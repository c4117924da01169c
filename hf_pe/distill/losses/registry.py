"""Distillation losses: pure functions of what student and teacher give. Zero when equal, never negative."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional

from hf_pe.distill.attention import Attention
from hf_pe.distill.counts import Unit
from hf_pe.distill.losses.attention import attention, relations
from hf_pe.distill.losses.embeddings import cosine, mse, similarity
from hf_pe.distill.losses.hidden import features, hidden
from hf_pe.distill.losses.logits import NEVER, Logits, Top, dist, jsd, kl, reverse_kl, softened, with_rest
from hf_pe.distill.losses.masked_mean import Signals, counted, mean_of_rows, places


class Settings(NamedTuple):
    """What losses of logits go by."""

    temperature: float = 1.0
    beta: float = 0.5


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
        here = softened(student, settings.temperature).gather(-1, classes).masked_fill(~shared, NEVER)
        there = teacher.logs.masked_fill(~shared, NEVER)
        one = settings._replace(temperature=1.0)
        return loss.each(with_rest(here), with_rest(there), labels, one) * settings.temperature**2
    both = min(student.shape[-1], teacher.shape[-1])
    return loss.each(student[..., :both], teacher[..., :both], labels, settings)


def _divergence_loss(name: str, each: Each, title: str, paper: str) -> Loss:
    def compute(student: Signals, teacher: Signals, settings: Settings) -> torch.Tensor:
        values = per_token(name, counted(student, student), counted(teacher, student), None, settings)
        return mean_of_rows(values)

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
