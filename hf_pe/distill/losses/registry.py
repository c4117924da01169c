"""Lists the distillation losses; recipe files, their schema, checks, plans, cards and chunked training use the list.

A loss is a pure function of the signals of student and teacher (see `hf_pe.distill.objective`). It is never negative,
and zero if both are equal. To add a loss, write the function and its entry in `LOSSES`.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from hf_pe.distill.attention import Attention
from hf_pe.distill.counts import Unit
from hf_pe.distill.layer_map import LayerMapping
from hf_pe.distill.losses.attention import attention, relations
from hf_pe.distill.losses.embeddings import cosine, mse, similarity
from hf_pe.distill.losses.hidden import features, hidden
from hf_pe.distill.losses.logits import NEVER, Logits, TopKLogits, dist, jsd, kl, reverse_kl, softened, with_rest
from hf_pe.distill.losses.masked_mean import Signals, counted, counted_features, mean_of_rows

CACHED_SIGNALS = ("logits", "embeddings")
"""Signals of a teacher that a cache can hold."""


class LossSettings(NamedTuple):
    """Holds the settings that losses depend on besides the signals of student and teacher.

    Attributes:
        temperature: of the logits.
        beta: of the Jensen-Shannon divergence.
        layers: which hidden state of the student learns from which of the teacher.
    """

    temperature: float = 1.0
    beta: float = 0.5
    layers: LayerMapping = LayerMapping()


PositionLoss = Callable[[torch.Tensor, Logits, torch.Tensor | None, LossSettings], torch.Tensor]
"""Returns values [positions] for logits [positions, classes] of student and teacher and labels [positions]."""
Divergence = Callable[[torch.Tensor, torch.Tensor, LossSettings], torch.Tensor]
"""Returns values [positions] for logits [positions, classes] of student and teacher over the same classes."""


class Loss(NamedTuple):
    """Describes a loss to the rest of the package.

    Attributes:
        compute: returns its value from the signals of student and teacher.
        needs: the signal that it compares: logits, embeddings, hidden_states, attentions or features; or "loss", the
            student's own loss on the labels, for which no teacher is needed.
        mean_over: the unit that it is a mean over.
        title: for plans and cards.
        reference: link to its paper; the paper's entry in `hf_pe.papers` becomes a citation of the card.
        default_weight: its weight in recipes that name no losses; None if these do not use it.
        by_position: returns its value at each position of the logits, so that logits can be read in chunks; None if
            it compares positions with each other.
        top_k_suffices: whether it can be computed from the teacher's most likely classes.
    """

    compute: Callable[[Signals, Signals, LossSettings], torch.Tensor]
    needs: str
    mean_over: Unit
    title: str
    reference: str
    default_weight: float | None = None
    by_position: PositionLoss | None = None
    top_k_suffices: bool = False

    @property
    def needs_teacher(self) -> bool:
        """Whether it compares the student with a teacher, and not only with the labels."""
        return self.needs != "loss"

    @property
    def is_cacheable(self) -> bool:
        """Whether it can be computed from the signals that a cache holds."""
        return not self.needs_teacher or self.needs in CACHED_SIGNALS


def divergence_loss(divergence: Divergence, title: str, reference: str, default_weight: float | None = None) -> Loss:
    """Return the entry of a divergence between the classes of student and teacher at each position.

    Args:
        divergence: of logits over the same classes.
        title: see `Loss`.
        reference: see `Loss`.
        default_weight: see `Loss`.
    """
    by_position = _over_shared_classes(divergence)

    def compute(student: Signals, teacher: Signals, settings: LossSettings) -> torch.Tensor:
        return mean_of_rows(by_position(counted(student, student), counted(teacher, student), None, settings))

    return Loss(compute, "logits", "predictions", title, reference, default_weight, by_position, top_k_suffices=True)


def _over_shared_classes(divergence: Divergence) -> PositionLoss:
    """Return a divergence over the classes that student and teacher share.

    Classes that only one of the two has (rows that pad a vocabulary) are left out. If a cache holds only the teacher's
    most likely classes, all others count as one class, in teacher and student.
    """

    def by_position(
        student: torch.Tensor, teacher: Logits, labels: torch.Tensor | None, settings: LossSettings
    ) -> torch.Tensor:
        if isinstance(teacher, TopKLogits):
            logits = _over_top_k(student, teacher, settings.temperature)
            return divergence(*logits, settings._replace(temperature=1.0)) * settings.temperature**2
        shared = min(student.shape[-1], teacher.shape[-1])
        return divergence(student[..., :shared], teacher[..., :shared], settings)

    return by_position


def _over_top_k(student: torch.Tensor, teacher: TopKLogits, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probabilities [positions, k + 1] of student and teacher.

    They are those of the teacher's k most likely classes, and behind them that of all other classes together.
    """
    is_shared = teacher.classes < student.shape[-1]
    classes = teacher.classes.clamp_max(student.shape[-1] - 1)
    student_log_probs = softened(student, temperature).gather(-1, classes).masked_fill(~is_shared, NEVER)
    return with_rest(student_log_probs), with_rest(teacher.log_probs.masked_fill(~is_shared, NEVER))


def _cross_entropy(
    student: torch.Tensor, teacher: Logits, labels: torch.Tensor | None, settings: LossSettings
) -> torch.Tensor:
    assert labels is not None
    return functional.cross_entropy(student.float(), labels, reduction="none")


def _dist(student: Signals, teacher: Signals, settings: LossSettings) -> torch.Tensor:
    student_logits, teacher_logits = counted(student, student), counted(teacher, student)
    shared = min(student_logits.shape[-1], teacher_logits.shape[-1])
    if not len(student_logits):
        zero: torch.Tensor = student_logits.float().sum()
        return zero
    return dist(student_logits[:, :shared], teacher_logits[:, :shared], settings.temperature)


LOSSES = {
    "kl": divergence_loss(
        lambda s, t, by: kl(s, t, by.temperature), "KL of the logits", "https://arxiv.org/abs/1503.02531", 1.0
    ),
    "reverse_kl": divergence_loss(
        lambda s, t, by: reverse_kl(s, t, by.temperature),
        "reverse KL of the logits",
        "https://arxiv.org/abs/2306.08543",
    ),
    "jsd": divergence_loss(
        lambda s, t, by: jsd(s, t, by.temperature, by.beta),
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
        1.0,
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
        10.0,
    ),
    "hidden": Loss(
        lambda s, t, by: hidden(
            s["hidden_states"],
            t["hidden_states"],
            s["tokens"],
            by.layers.pairs,
            by.layers.projections,
            by.layers.scales,
        ),
        "hidden_states",
        "tokens",
        "hidden states",
        "https://arxiv.org/abs/1909.10351",
    ),
    "features": Loss(
        lambda s, t, by: features(
            counted_features(s["features"], s), counted_features(t["features"], s), by.layers.feature_scale
        ),
        "features",
        "predictions",
        "features before the head, which is reused",
        "https://arxiv.org/abs/2203.14001",
    ),
    "attention": Loss(
        lambda s, t, by: attention(*_paired(s["attentions"], t["attentions"], by.layers), s["tokens"]),
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
        by_position=_cross_entropy,
    ),
}
"""All losses by their names in recipes. `task` is the student's own loss on the labels."""


def signals_needed(names: Iterable[str]) -> set[str]:
    """Return the signals that losses compare."""
    return {LOSSES[name].needs for name in names}


def losses_of(signals: Collection[str]) -> list[str]:
    """Return the names of all losses that compare one of these signals."""
    return [name for name, loss in LOSSES.items() if loss.needs in signals]


def default_losses(signals: Mapping[str, Any]) -> dict[str, float]:
    """Return the weights for recipes that name no losses: the default losses of the first signal that is available.

    Args:
        signals: of the student.
    """
    defaults = {name: loss for name, loss in LOSSES.items() if loss.default_weight is not None}
    signal = next(loss.needs for loss in defaults.values() if loss.needs in signals)
    return {name: loss.default_weight or 0.0 for name, loss in defaults.items() if loss.needs == signal}


def _paired(
    student: list[Attention], teacher: list[Attention], layers: LayerMapping
) -> tuple[list[Attention], list[Attention]]:
    """Return the attention of the student's layers, and of the teacher's layers that they learn from."""
    pairs = [(i - 1, j - 1) for i, j in layers.pairs or () if i and j]
    if not pairs or max(pairs) != (len(student) - 1, len(teacher) - 1):
        pairs = [(i, round((i + 1) * len(teacher) / len(student)) - 1) for i in range(len(student))]
    return [student[i] for i, _ in pairs], [teacher[j] for _, j in pairs]
