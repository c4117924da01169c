"""Computes a student's outputs for a batch, and compares them with those of one teacher by the losses.

There are two ways with the same results: `WholeOutputs` holds all logits; `ChunkedOutputs` computes the logits of a
language model a few positions at a time. `Objective` treats both alike.
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
"""Name of a term that is no loss: the fraction of positions at which the largest logits of both models belong to the
same class; for embeddings, their mean cosine."""


class Comparison(NamedTuple):
    """Holds the losses of a student against one teacher, each a mean over the batch.

    Attributes:
        losses: by name, not weighted yet, with gradients.
        detached: by name, without gradients: the agreement, and the losses that are part of `weighted_sum`.
        weighted_sum: weighted sum of the losses that are computed in chunks; None if there are none.
    """

    losses: dict[str, torch.Tensor]
    detached: dict[str, torch.Tensor]
    weighted_sum: torch.Tensor | None = None


class StudentOutputs(Protocol):
    """Holds a student's outputs for a batch, and compares them with those of teachers."""

    @property
    def signals(self) -> Signals:
        """The signals by name, as `Task.signals` returns them."""

    def teacher_signals(self, teacher: TeacherSource, batch: Batch, request: SignalRequest) -> Signals:
        """Return the same signals of a teacher."""

    def compare(
        self, weights: Mapping[str, float], targets: Signals, settings: LossSettings, *, agreement: bool
    ) -> Comparison:
        """Compute the losses against one teacher.

        Args:
            weights: of the losses, by name, already multiplied by the teacher's fraction.
            targets: result of `teacher_signals`; empty if no loss needs a teacher.
            settings: of the losses.
            agreement: also compute how far student and teacher agree.
        """


@dataclass(frozen=True)
class WholeOutputs:
    """Holds outputs with all their logits, or outputs without logits."""

    signals: Signals

    @classmethod
    def of(cls, model: nn.Module, batch: Batch, request: SignalRequest, label_head: nn.Module | None) -> "WholeOutputs":
        """Run a forward pass of a student.

        Args:
            model: the student, possibly wrapped.
            batch: as the task's collator makes it.
            request: the signals to compute.
            label_head: reads features through a stitching layer to the teacher's width, which are then a signal too.
        """
        signals = with_token_mask(whole_signals(model, batch, request, label_head), batch, request)
        if label_head is not None:
            signals["features"] = stitched_features(label_head, signals["features"])
        return cls(signals)

    def teacher_signals(self, teacher: TeacherSource, batch: Batch, request: SignalRequest) -> Signals:
        """Return the teacher's signals with all logits."""
        return teacher.signals(batch, request)

    def compare(
        self, weights: Mapping[str, float], targets: Signals, settings: LossSettings, *, agreement: bool
    ) -> Comparison:
        """Compute the losses; see `StudentOutputs.compare`."""
        losses = {name: LOSSES[name].compute(self.signals, targets, settings) for name in weights}
        agreed = agreement_of(self.signals, targets) if agreement else None
        return Comparison(losses, {} if agreed is None else {AGREEMENT: agreed})


@dataclass(frozen=True)
class ChunkedOutputs:
    """Holds the outputs of a language model whose logits are computed in chunks.

    Attributes:
        signals: all signals but the logits.
        logits: of the positions with a label.
        positions: mask of these positions. *Shape:* (batch, tokens), bool
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

    def teacher_signals(self, teacher: TeacherSource, batch: Batch, request: SignalRequest) -> Signals:
        """Return the teacher's signals, with logits that can be read in chunks."""
        return teacher.chunked_signals(batch, self.positions, request)

    def compare(
        self, weights: Mapping[str, float], targets: Signals, settings: LossSettings, *, agreement: bool
    ) -> Comparison:
        """Compute the losses; those with `Loss.by_position` are computed in chunks, the others as in `WholeOutputs`."""
        in_chunks = {name: loss for name in weights if (loss := LOSSES[name].by_position) is not None}
        names = [*in_chunks, *([AGREEMENT] if agreement else [])]
        count = max(len(self.labels), 1)

        def sums(student: torch.Tensor, teacher: Logits, positions: slice) -> torch.Tensor:
            by_name = [loss(student, teacher, self.labels[positions], settings) for loss in in_chunks.values()]
            agreed = [agrees(student.detach(), teacher)] if agreement else []
            return torch.stack([values.sum() for values in (*by_name, *agreed)])

        factors = [weights.get(name, 0.0) / count for name in names]
        teacher_logits: LogitSource | None = targets.get("logits")
        weighted_sum, totals = chunked(sums, factors, self.logits, teacher_logits)
        means = {name: total / count for name, total in zip(names, totals, strict=True)}
        losses = {
            name: LOSSES[name].compute(self.signals, targets, settings) for name in weights if name not in in_chunks
        }
        return Comparison(losses, means, weighted_sum)


def with_token_mask(signals: Signals, batch: Batch, request: SignalRequest) -> Signals:
    """Return a student's signals with `tokens`: the mask of the tokens whose hidden states or attention are compared.

    `tokens` is [batch, tokens], or None for feature maps, which have no padding. A task may have set it already.
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
    """Return how far a student agrees with a teacher; see `AGREEMENT`.

    It is None if embeddings have different widths, if there are neither logits nor embeddings, or if there is a single
    logit, which is always the largest.
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
