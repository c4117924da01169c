"""What a student is trained for: the weighted sum of losses over its teachers, with each term to look at."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional
from transformers import PreTrainedModel

from hf_pe.distill.attention import watched
from hf_pe.distill.chunked import chunked
from hf_pe.distill.counts import UNITS, Unit
from hf_pe.distill.layer_map import Pairs
from hf_pe.distill.losses.logits import Logits, agreement
from hf_pe.distill.losses.masked_mean import Signals, counted
from hf_pe.distill.losses.registry import LOSSES, Settings, per_token
from hf_pe.distill.schedule import Scheduled, at
from hf_pe.stitching import bridged, read_by
from hf_pe.tasks import Batch, Head, Task, as_read_by, states

AGREEMENT = "agreement"
"""Not a loss: the share of positions where both find the same class likeliest, or the embeddings' mean cosine."""


class Outcome(NamedTuple):
    """Of one batch.

    Attributes:
        loss: to take gradients of.
        terms: each loss by name, unweighted, the teachers' weighted mean; and on request `agreement`.
        signals: what the student gave.
    """

    loss: torch.Tensor
    terms: dict[str, torch.Tensor]
    signals: Signals


class Answers(Protocol):
    """Where a teacher's answers come from."""

    weight: float

    def to(self, device: torch.device) -> None:
        """Get ready to answer on `device`."""

    def signals(self, batch: Batch, *, task: Task, hidden: bool, attentions: bool) -> Signals:
        """As `Task.signals`, with `attentions` where asked for."""

    def last(self, batch: Batch, mask: torch.Tensor, *, hidden: bool, attentions: bool) -> "Last":
        """For losses in chunks: the logits of the positions in `mask`, a part at a time, and what else is asked for."""


class Last(NamedTuple):
    """What a teacher gives where logits are not held whole."""

    part: Any
    signals: Signals


class Link(NamedTuple):
    """How a student's layers learn from those of one teacher.

    Attributes:
        pairs: which hidden state learns from which; None: evenly.
        projections: of the student's hidden states to the teacher's width, one for each pair, where it differs.
        scales: mean square of the teacher's hidden states, one for each pair, on the rows that were looked at first;
            they must not hang on the batch, or a step of several batches would not be one of a large batch.
        feature_scale: the same of what the teacher's head reads, where losses look at that.
    """

    pairs: Pairs | None = None
    projections: Sequence[nn.Module] = ()
    scales: Sequence[torch.Tensor] = ()
    feature_scale: torch.Tensor | None = None


@dataclass
class Live:
    """A model that answers as it is asked.

    Attributes:
        model: in evaluation mode, without gradients.
        weight: beside other teachers.
        head: where losses of the logits go in chunks.
        label_head: where losses look at the features that it reads.
    """

    model: PreTrainedModel
    weight: float = 1.0
    head: Head | None = None
    label_head: nn.Module | None = None

    def to(self, device: torch.device) -> None:
        """Move the model, unless its parts have their places already."""
        if not (
            is_sharded(self.model)
            or getattr(self.model, "hf_device_map", None)
            or getattr(self.model, "is_quantized", False)
        ):
            self.model.to(device)  # type: ignore[arg-type]

    def signals(self, batch: Batch, *, task: Task, hidden: bool, attentions: bool) -> Signals:
        """By a forward pass; images and sounds in the teacher's own precision."""
        batch = batch | as_read_by(self.model, batch)
        with torch.no_grad(), _watching(attentions) as seen, read_by(self.label_head) as read:
            found = task.signals(self.model, batch, hidden=hidden)
        return found | ({"attentions": seen} if attentions else {}) | ({"features": read[-1]} if read else {})

    def last(self, batch: Batch, mask: torch.Tensor, *, hidden: bool, attentions: bool) -> Last:
        """By a forward pass up to the last hidden state."""
        assert self.head is not None
        head = self.head
        with torch.no_grad(), _watching(attentions) as seen:
            found = states(self.model, batch) if hidden else ()
            last = found[-1] if hidden else head.last_state(self.model, batch)
        rows = last[mask]
        return Last(lambda place: head(rows[place]), {"hidden_states": found, "attentions": seen})


def is_sharded(model: nn.Module) -> bool:
    """Whether its parameters are spread over processes (FSDP2)."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def _watching(attentions: bool) -> AbstractContextManager[Any]:
    return watched() if attentions else nullcontext()


@dataclass
class Objective:
    """The loss of a student on a batch.

    Attributes:
        task: gives the signals of all models.
        weights: loss name to weight; see `hf_pe.distill.losses.registry.LOSSES`.
        teachers: their losses count by their weights, which need not add up to 1.
        temperature: of the logits.
        beta: of the Jensen-Shannon divergence.
        head: the student's, where losses of the logits are to be taken in chunks.
        label_head: the student's, made by `hf_pe.stitching.reuse_`, where losses look at the features that it reads.
        links: how the student's layers learn from each teacher's, where losses look at hidden states.
    """

    task: Task
    weights: Mapping[str, Scheduled]
    teachers: Sequence[Answers]
    temperature: Scheduled = 1.0
    beta: float = 0.5
    head: Head | None = None
    links: Sequence[Link] = ()
    label_head: nn.Module | None = None

    def __post_init__(self) -> None:
        needs = {LOSSES[name].needs for name in self.weights}
        self.hidden, self.attentions = "hidden_states" in needs, "attentions" in needs
        total = sum(teacher.weight for teacher in self.teachers)
        self.shares = [teacher.weight / total for teacher in self.teachers]
        self.links = self.links or [Link()] * len(self.teachers)

    @property
    def projections(self) -> list[nn.Module]:
        """Of the student's hidden states, for all teachers: they learn along, and are no part of it."""
        return [projection for link in self.links for projection in link.projections]

    def __call__(
        self,
        model: Any,
        batch: Batch,
        *,
        progress: float = 0.0,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        agreement: bool = False,
        shares: Mapping[Unit, torch.Tensor] | None = None,
    ) -> Outcome:
        """The student's loss on `batch`.

        Args:
            model: the student, wrapped perhaps.
            batch: as the task's collator makes it.
            progress: share of the steps that are done, 0 to 1.
            autocast: makes what a teacher runs under; called for each of them.
            agreement: also say how far student and teachers agree.
            shares: of what losses are means over, which share of a step this batch has: its losses are multiplied by
                it, so that those of all batches add up to the step's. Default: the batch is the step.
        """
        share_of = dict.fromkeys(UNITS, torch.ones(())) if shares is None else shares
        settings = Settings(at(self.temperature, progress), self.beta)
        weights = {name: at(weight, progress) for name, weight in self.weights.items()}
        if self.head is not None:
            return self._in_chunks(model, batch, weights, settings, autocast, agreement, share_of)
        with _watching(self.attentions) as seen, read_by(self.label_head) as read:
            student = self.task.signals(model, batch, hidden=self.hidden)
        student = self._completed(student, batch, seen)
        if self.label_head is not None:
            student["features"] = bridged(self.label_head, read[-1])
        terms: dict[str, torch.Tensor] = {}
        for teacher, share, link in zip(self.teachers, self.shares, self.links, strict=True):
            student |= link._asdict()
            wanted: Signals = {}
            if self._asks(agreement):
                with torch.no_grad(), autocast():
                    wanted = teacher.signals(batch, task=self.task, hidden=self.hidden, attentions=self.attentions)
            for name in weights:
                if name != "task" or name not in terms:
                    value = LOSSES[name].compute(student, wanted, settings)
                    value = value * share_of[LOSSES[name].mean_over].to(value.device)
                    _add(terms, name, value if name == "task" else share * value)
            if agreement and (agreed := _agreement(student, wanted)) is not None:
                _add(terms, AGREEMENT, share * agreed * share_of["predictions"].to(agreed.device))
        loss = torch.stack([weight * terms[name] for name, weight in weights.items()]).sum()
        return Outcome(loss, {name: value.detach() for name, value in terms.items()}, student)

    def _in_chunks(
        self,
        model: Any,
        batch: Batch,
        weights: dict[str, float],
        settings: Settings,
        autocast: Callable[[], AbstractContextManager[Any]],
        agreed: bool,
        share_of: Mapping[Unit, torch.Tensor],
    ) -> Outcome:
        """The same without whole logits; what looks at hidden states or attention comes beside."""
        assert self.head is not None
        mask, labels = self.task.predicted(batch)  # type: ignore[attr-defined]
        with _watching(self.attentions) as seen:
            hidden = states(model, batch) if self.hidden else ()
            last = hidden[-1] if self.hidden else self.head.last_state(model, batch)
        student = self._completed({"hidden_states": hidden}, batch, seen)
        count = max(len(labels), 1)
        here_of_step = share_of["predictions"].to(labels.device)
        terms: dict[str, torch.Tensor] = {}
        losses: list[torch.Tensor] = []
        for number, (teacher, share, link) in enumerate(zip(self.teachers, self.shares, self.links, strict=True)):
            student |= link._asdict()
            wanted = Last(lambda place: None, {})
            if self._asks(agreed):
                with torch.no_grad(), autocast():
                    wanted = teacher.last(batch, mask, hidden=self.hidden, attentions=self.attentions)
            names = [n for n in weights if LOSSES[n].each is not None and (n != "task" or number == 0)]

            def values(
                here: torch.Tensor, there: Logits, place: slice, names: Sequence[str] = tuple(names)
            ) -> torch.Tensor:
                found = [per_token(name, here, there, labels[place], settings).sum() for name in names]
                return torch.stack([*found, *([agreement(here.detach(), there).sum()] if agreed else [])])

            parts = {name: 1.0 if name == "task" else share for name in [*names, *([AGREEMENT] if agreed else [])]}
            factors = [weights.get(name, 0.0) * part / count for name, part in parts.items()]
            loss, found = chunked(values, factors, (last[mask], self.head), wanted.part)
            losses.append(loss * here_of_step)
            for (name, part), value in zip(parts.items(), found, strict=True):
                _add(terms, name, part * value / count * here_of_step)
            beside = {}
            for name in (n for n in weights if LOSSES[n].each is None):
                value = LOSSES[name].compute(student, wanted.signals, settings)
                beside[name] = share * value * share_of[LOSSES[name].mean_over].to(value.device)
                _add(terms, name, beside[name].detach())
            losses += [weights[name] * value for name, value in beside.items()]
        return Outcome(torch.stack(losses).sum(), {n: v.detach() for n, v in terms.items()}, student)

    def _asks(self, agreement: bool) -> bool:
        """Whether anything looks at teachers: labels alone do not."""
        return agreement or self.weights.keys() != {"task"}

    def _completed(self, signals: Signals, batch: Batch, seen: Any) -> Signals:
        """With which tokens count, and where they look."""
        found = dict(signals)
        if seen is not None:
            found["attentions"] = seen
        if self.hidden and found["hidden_states"][0].ndim == 4:
            found["tokens"] = None  # maps have no padding
        if "tokens" not in found and (self.hidden or self.attentions):
            rows, tokens = (found["hidden_states"][0] if self.hidden else seen[0].query.transpose(1, 2)).shape[:2]
            mask = batch.get("attention_mask")
            fits = mask is not None and mask.shape == (rows, tokens)
            device = next(iter(batch.values())).device
            found["tokens"] = mask if fits else torch.ones(rows, tokens, dtype=torch.long, device=device)
        return found


def _add(terms: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> None:
    terms[name] = terms[name] + value if name in terms else value


@torch.no_grad()
def _agreement(student: Signals, teacher: Signals) -> torch.Tensor | None:
    """None where embeddings have different widths, or there is nothing to compare: one output is always the largest."""
    if "logits" in student:
        if student["logits"].shape[-1] == 1:
            return None
        agreed = agreement(counted(student, student), counted(teacher, student))
        return agreed.sum() / max(len(agreed), 1)
    if "embeddings" not in student:
        return None
    here, there = (signals["embeddings"].float() for signals in (student, teacher))
    return functional.cosine_similarity(here, there, dim=-1).mean() if here.shape == there.shape else None
