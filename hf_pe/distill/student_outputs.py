"""What a student gives for a batch, and how it compares with what one teacher gives.

Logits are whole (`WholeOutputs`) or made in chunks (`ChunkedOutputs`); `Objective` treats both alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import nn
from torch.nn import functional

from hf_pe.distill.chunked import chunked
from hf_pe.distill.logit_source import ChunkedLogits, LogitSource
from hf_pe.distill.losses.logits import Logits, agrees
from hf_pe.distill.losses.masked_mean import Signals, counted
from hf_pe.distill.losses.registry import LOSSES, LossSettings
from hf_pe.distill.signals import SignalRequest, chunked_signals, whole_signals
from hf_pe.distill.teachers.source import TeacherSource
from hf_pe.stitching import stitched_features
from hf_pe.tasks import Batch, Head

AGREEMENT = "agreement"
"""No loss: the share of positions where both give the same class the highest logit, or the embeddings' mean cosine."""


class Comparison(NamedTuple):
    """The losses of a student beside one teacher, each a mean over the batch.

    Attributes:
        losses: by name, to be weighted; gradients flow through them.
        known: by name, without gradients: the agreement, and losses that are part of `weighted_sum`.
        weighted_sum: of losses whose gradients are computed already; None where there are none.
    """

    losses: dict[str, torch.Tensor]
    known: dict[str, torch.Tensor]
    weighted_sum: torch.Tensor | None = None


class StudentOutputs(Protocol):
    """What a student gives for a batch."""

    @property
    def signals(self) -> Signals:
        """By name, as `Task.signals` gives them."""

    def ask(self, teacher: TeacherSource, batch: Batch, request: SignalRequest) -> Signals:
        """Return the same outputs of a teacher."""

    def compare(
        self, weights: Mapping[str, float], targets: Signals, settings: LossSettings, *, agreement: bool
    ) -> Comparison:
        """Compute losses.

        Args:
            weights: of the losses, by name; the teacher's own weight is part of them.
            targets: what `ask` gave; empty where no loss looks at a teacher.
            settings: of the losses.
            agreement: also say how far student and teacher agree.
        """


@dataclass(frozen=True)
class WholeOutputs:
    """Outputs with whole logits, or without any."""

    signals: Signals

    @classmethod
    def of(cls, model: nn.Module, batch: Batch, request: SignalRequest, label_head: nn.Module | None) -> "WholeOutputs":
        """Run a forward pass of a student; `label_head` reads features through a stitching layer."""
        signals = with_token_mask(whole_signals(model, batch, request, label_head), batch, request)
        if label_head is not None:
            signals["features"] = stitched_features(label_head, signals["features"])
        return cls(signals)

    def ask(self, teacher: TeacherSource, batch: Batch, request: SignalRequest) -> Signals:
        """See `StudentOutputs`."""
        return teacher.signals(batch, request)

    def compare(
        self, weights: Mapping[str, float], targets: Signals, settings: LossSettings, *, agreement: bool
    ) -> Comparison:
        """See `StudentOutputs`."""
        losses = {name: LOSSES[name].compute(self.signals, targets, settings) for name in weights}
        agreed = agreement_of(self.signals, targets) if agreement else None
        return Comparison(losses, {} if agreed is None else {AGREEMENT: agreed})


@dataclass(frozen=True)
class ChunkedOutputs:
    """Outputs of a language model whose logits are made in chunks.

    Attributes:
        signals: all but the logits.
        logits: at the positions that count.
        positions: which tokens these are. *Shape:* (batch, tokens), bool
        labels: of the positions. *Shape:* (positions,)
    """

    signals: Signals
    logits: ChunkedLogits
    positions: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def of(cls, model: nn.Module, batch: Batch, request: SignalRequest, head: Head) -> "ChunkedOutputs":
        """Run a forward pass of a student up to its last hidden state."""
        positions, labels = request.task.predicted(batch)
        signals = with_token_mask(chunked_signals(model, head, batch, positions, request), batch, request)
        return cls(signals, signals.pop("logits"), positions, labels)

    def ask(self, teacher: TeacherSource, batch: Batch, request: SignalRequest) -> Signals:
        """See `StudentOutputs`."""
        return teacher.chunked_signals(batch, self.positions, request)

    def compare(
        self, weights: Mapping[str, float], targets: Signals, settings: LossSettings, *, agreement: bool
    ) -> Comparison:
        """See `StudentOutputs`; losses that look at one position at a time go in chunks, the others beside them."""
        in_chunks = {name: loss for name in weights if (loss := LOSSES[name].by_position) is not None}
        beside = [name for name in weights if name not in in_chunks]
        names = [*in_chunks, *([AGREEMENT] if agreement else [])]
        count = max(len(self.labels), 1)

        def sums(student: torch.Tensor, teacher: Logits, positions: slice) -> torch.Tensor:
            by_name = [loss(student, teacher, self.labels[positions], settings) for loss in in_chunks.values()]
            agreed = [agrees(student.detach(), teacher)] if agreement else []
            return torch.stack([values.sum() for values in (*by_name, *agreed)])

        factors = [weights.get(name, 0.0) / count for name in names]
        teacher_logits: LogitSource | None = targets.get("logits")
        weighted_sum, totals = chunked(sums, factors, self.logits, teacher_logits)
        known = {name: total / count for name, total in zip(names, totals, strict=True)}
        losses = {name: LOSSES[name].compute(self.signals, targets, settings) for name in beside}
        return Comparison(losses, known, weighted_sum)


def with_token_mask(signals: Signals, batch: Batch, request: SignalRequest) -> Signals:
    """Return a student's signals with `tokens`: which tokens count where hidden states or attention are compared.

    `tokens` is [batch, tokens], or None for feature maps, which have no padding; a task may have given its own.
    """
    if request.hidden and signals["hidden_states"][0].ndim == 4:
        return signals | {"tokens": None}
    if "tokens" in signals or not (request.hidden or request.attentions):
        return signals
    state = signals["hidden_states"][0] if request.hidden else signals["attentions"][0].query.transpose(1, 2)
    rows, tokens = state.shape[:2]
    mask = batch.get("attention_mask")
    if mask is None or mask.shape != (rows, tokens):
        mask = torch.ones(rows, tokens, dtype=torch.long, device=next(iter(batch.values())).device)
    return signals | {"tokens": mask}


@torch.no_grad()
def agreement_of(student: Signals, teacher: Signals) -> torch.Tensor | None:
    """Return how far a student agrees with a teacher, see `AGREEMENT`.

    None where embeddings have different widths, or there is nothing to compare: a single output is always the largest.
    """
    if "logits" in student:
        if student["logits"].shape[-1] == 1:
            return None
        agreed = agrees(counted(student, student), counted(teacher, student))
        return agreed.sum() / max(len(agreed), 1)
    if "embeddings" not in student:
        return None
    embeddings, targets = (signals["embeddings"].float() for signals in (student, teacher))
    if embeddings.shape != targets.shape:
        return None
    return functional.cosine_similarity(embeddings, targets, dim=-1).mean()
