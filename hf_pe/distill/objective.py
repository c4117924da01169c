"""What a student is trained for: the weighted sum of losses over its teachers.

For one batch, with

    s       the student's signals: logits, embeddings, hidden states, attention, features, or its own loss on labels
    t_k     the same signals of teacher k, without gradients
    a_k     the weight of teacher k over the sum of all teachers' weights, so that the a_k add up to 1
    w_l     the weight of loss l, which may follow a schedule
    L_l     loss l, a mean over the rows, predictions, labels or tokens of the batch
    f_l     the fraction of these rows, predictions, ... of an optimizer step that the batch holds; 1 for a single batch

the objective is

    sum over l of  w_l f_l (sum over k of  a_k L_l(s, t_k))

The loss on labels (`task`) looks at no teacher and counts once. With gradient accumulation and with many processes the
f_l make the sum over all batches of a step that of one large batch: means over unequal numbers of tokens would not be.

Worked example: two teachers with weights 3 and 1 have a = (0.75, 0.25). With the losses {kl: 1.0, task: 0.5}, KL
divergences of 0.4 and 0.8 and a cross-entropy of 2.0 the objective is 1.0 (0.75 * 0.4 + 0.25 * 0.8) + 0.5 * 2.0 = 1.5.

Logits are [batch, tokens, classes] where a model predicts tokens and [batch, classes] where it predicts once; only
positions that count (a label that is not -100) are compared, as [positions, classes]. Where the vocabulary is large
they never stand in memory as a whole: `student_outputs.ChunkedOutputs` makes them 128 positions at a time and turns
each chunk into gradients at once. Values and gradients are the same to rounding.

Sources: Hinton et al. 2015, arXiv:1503.02531, for the weighted sum; the losses name their own.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from hf_pe.distill.counts import UNITS, Unit
from hf_pe.distill.layer_map import LayerMapping
from hf_pe.distill.losses.masked_mean import Signals
from hf_pe.distill.losses.registry import LOSSES, LossSettings, signals_needed
from hf_pe.distill.schedule import Scheduled, at
from hf_pe.distill.signals import SignalRequest
from hf_pe.distill.student_outputs import AGREEMENT, ChunkedOutputs, Comparison, StudentOutputs, WholeOutputs
from hf_pe.distill.teachers.source import TeacherSource
from hf_pe.tasks import Batch, Head, Task


class ObjectiveValue(NamedTuple):
    """The objective on one batch.

    Attributes:
        loss: to take gradients of. *Shape:* ()
        terms: each loss by name, the teachers' weighted mean, without gradients; and on request `agreement`.
        signals: what the student gave.
    """

    loss: torch.Tensor
    terms: dict[str, torch.Tensor]
    signals: Signals


@dataclass(frozen=True)
class Objective:
    """The loss of a student on a batch; the module's docstring has the formula.

    Attributes:
        task: gives the signals of all models.
        weights: loss name to weight; see `hf_pe.distill.losses.registry.LOSSES`.
        teachers: their losses count by their weights, which need not add up to 1.
        temperature: of the logits.
        beta: of the Jensen-Shannon divergence.
        head: the student's, where logits are to be made in chunks.
        layer_mappings: how the student's layers learn from those of each teacher; none: evenly.
        label_head: the student's, made by `hf_pe.stitching.reuse_`, where a loss looks at the features that it reads.

    Example:
        A teacher gives two classes the probabilities (0.8, 0.2), a student (0.5, 0.5); the label is the first class.
        KL(teacher || student) is 0.193, the loss on the label -ln 0.5 = 0.693.

        >>> from types import SimpleNamespace
        >>> outputs = {"logits": torch.tensor([[0.5, 0.5]]).log(), "loss": -torch.tensor(0.5).log()}
        >>> targets = {"logits": torch.tensor([[0.8, 0.2]]).log()}
        >>> task = SimpleNamespace(signals=lambda model, batch, hidden: outputs)
        >>> teacher = SimpleNamespace(weight=1.0, signals=lambda batch, request: targets)
        >>> value = Objective(task, {"kl": 1.0, "task": 0.5}, [teacher])(model=None, batch={})
        >>> {name: round(float(term), 3) for name, term in value.terms.items()}
        {'kl': 0.193, 'task': 0.693}
        >>> round(float(value.loss), 3)  # 1.0 * 0.193 + 0.5 * 0.693
        0.539
    """

    task: Task
    weights: Mapping[str, Scheduled]
    teachers: Sequence[TeacherSource]
    temperature: Scheduled = 1.0
    beta: float = 0.5
    head: Head | None = None
    layer_mappings: Sequence[LayerMapping] = ()
    label_head: nn.Module | None = None

    @property
    def request(self) -> SignalRequest:
        """Which signals student and teachers are asked for."""
        needed = signals_needed(self.weights)
        return SignalRequest(self.task, "hidden_states" in needed, "attentions" in needed)

    @property
    def projections(self) -> list[nn.Module]:
        """The projections of the student's hidden states for all teachers: they are trained, and no part of it."""
        return [projection for mapping in self.layer_mappings for projection in mapping.projections]

    def __call__(
        self,
        model: Any,
        batch: Batch,
        *,
        progress: float = 0.0,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        agreement: bool = False,
        shares: Mapping[Unit, torch.Tensor] | None = None,
    ) -> ObjectiveValue:
        """Compute the student's loss on `batch`.

        Args:
            model: the student, wrapped perhaps.
            batch: as the task's collator makes it.
            progress: fraction of the steps that are done, 0 to 1.
            autocast: makes what a teacher runs under; called for each of them.
            agreement: also say how far student and teachers agree.
            shares: which fraction of a step's rows, tokens, ... this batch has; each loss is multiplied by that of what
                it is a mean over, so that the losses of all batches add up to the step's. Default: 1.
        """
        settings = LossSettings(at(self.temperature, progress), self.beta)
        weights = {name: at(weight, progress) for name, weight in self.weights.items()}
        total = _Total(weights, dict.fromkeys(UNITS, torch.ones(())) if shares is None else shares)
        outputs = self._student_outputs(model, batch)
        is_asked = agreement or any(LOSSES[name].needs_teacher for name in weights)
        for number, (teacher, fraction, mapping) in enumerate(self._teachers_and_mappings()):
            targets: Signals = {}
            if is_asked:
                with torch.no_grad(), autocast():
                    targets = outputs.ask(teacher, batch, self.request)
            fractions = {n: fraction if LOSSES[n].needs_teacher else 1.0 for n in weights}
            own_weights = {n: weights[n] * fractions[n] for n in weights if number == 0 or LOSSES[n].needs_teacher}
            if not own_weights and not agreement:  # the labels count once, beside the first teacher
                continue
            comparison = outputs.compare(own_weights, targets, settings._replace(layers=mapping), agreement=agreement)
            total.add(comparison, fractions | {AGREEMENT: fraction})
        return ObjectiveValue(total.loss, total.detached_terms, outputs.signals)

    def _student_outputs(self, model: Any, batch: Batch) -> StudentOutputs:
        if self.head is None:
            return WholeOutputs.of(model, batch, self.request, self.label_head)
        return ChunkedOutputs.of(model, batch, self.request, self.head)

    def _teachers_and_mappings(self) -> list[tuple[TeacherSource, float, LayerMapping]]:
        """Return each teacher with its fraction of all weights and how layers learn from it."""
        sum_of_weights = sum(teacher.weight for teacher in self.teachers)
        fractions = [teacher.weight / sum_of_weights for teacher in self.teachers]
        mappings = self.layer_mappings or [LayerMapping()] * len(self.teachers)
        return list(zip(self.teachers, fractions, mappings, strict=True))


class _Total:
    """Adds up the losses of a batch over teachers.

    Args:
        weights: of the losses, by name.
        shares: see `Objective.__call__`.
    """

    def __init__(self, weights: Mapping[str, float], shares: Mapping[Unit, torch.Tensor]) -> None:
        self.weights = weights
        self.shares = shares
        self.losses: dict[str, torch.Tensor] = {}
        self.known: dict[str, torch.Tensor] = {}
        self.weighted_sums: list[torch.Tensor] = []

    def add(self, comparison: Comparison, fractions: Mapping[str, float]) -> None:
        """Add what one teacher makes of the student, weighted by its fraction of all teachers."""
        for sums, values in ((self.losses, comparison.losses), (self.known, comparison.known)):
            for name, value in values.items():
                term = fractions[name] * (value * self._share(name).to(value.device))
                sums[name] = sums[name] + term if name in sums else term
        if comparison.weighted_sum is not None:
            # losses that go in chunks are all means over predictions
            share = self.shares["predictions"].to(comparison.weighted_sum.device)
            self.weighted_sums.append(comparison.weighted_sum * share)

    @property
    def loss(self) -> torch.Tensor:
        """The weighted sum of all losses."""
        return torch.stack(
            [*self.weighted_sums, *(self.weights[name] * value for name, value in self.losses.items())]
        ).sum()

    @property
    def detached_terms(self) -> dict[str, torch.Tensor]:
        """Each loss by name without gradients, and the agreement."""
        return {name: value.detach() for name, value in (self.losses | self.known).items()}

    def _share(self, name: str) -> torch.Tensor:
        return self.shares["predictions" if name == AGREEMENT else LOSSES[name].mean_over]
