"""Computes the training loss of a distillation: a weighted sum of losses over one or several teachers.

`Objective` takes the place of the `loss` that a transformers model returns for a batch: `DistillationTrainer` calls it
in `compute_loss`. It runs the student on the batch, obtains the same outputs from every teacher, and compares them by
the losses that the recipe names, such as the KL divergence of the logits.

A *signal* is a named output that a loss can compare: logits, embeddings, hidden states, attention, the features before
the head, or the student's own loss on the labels. The task says how a model computes them (`Task.signals`). A teacher
(`TeacherSource`) is a model that runs on each batch, or a cache file with its outputs. For one batch, with

    s       the signals of the student
    t_k     the same signals of teacher k, without gradients
    a_k     the weight of teacher k divided by the sum of all teachers' weights, so that the a_k add up to 1
    w_l     the weight of loss l, which may follow a schedule
    L_l     loss l, a mean over the rows, predictions, labels or tokens of the batch
    f_l     the fraction of these rows, predictions, ... of an optimizer step that the batch holds; 1 for a single batch

the objective is

    sum over l of  w_l f_l (sum over k of  a_k L_l(s, t_k))

The loss on the labels (`task`) needs no teacher and is added once. An optimizer step may consist of several batches, by
gradient accumulation and by several processes. The factors f_l make the sum over all of them equal to the loss of one
large batch; a plain mean would not be, because batches hold different numbers of tokens. Losses that compare the rows
of a batch with each other (`similarity`, `dist`) are the exception. Losses on logits contain the square of the
temperature.

Worked example: two teachers with weights 3 and 1 have a = (0.75, 0.25). With the losses {kl: 1.0, task: 0.5}, KL
divergences of 0.4 and 0.8 and a cross-entropy of 2.0 the objective is 1.0 (0.75 * 0.4 + 0.25 * 0.8) + 0.5 * 2.0 = 1.5.

Logits are [batch, tokens, classes] if a model predicts tokens and [batch, classes] if it classifies. Only positions
whose label is not -100 are compared, as [positions, classes]. Logits over a large vocabulary are never held as a whole:
`student_outputs.ChunkedOutputs` computes them 128 positions at a time and turns each chunk into gradients at once. The
loss and its gradients are equal up to rounding.

Sources: Hinton et al. 2015, arXiv:1503.02531, for the weighted sum; each loss names its own.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from hf_pe.distill.counts import UNITS, Unit
from hf_pe.distill.layer_map import LayerMapping
from hf_pe.distill.logit_source import ChunkedLogits
from hf_pe.distill.losses.masked_mean import Signals
from hf_pe.distill.losses.registry import LOSSES, LossSettings, signals_needed
from hf_pe.distill.schedule import Scheduled, at
from hf_pe.distill.signals import SignalRequest
from hf_pe.distill.stopwatch import Stopwatch, TimedLogits
from hf_pe.distill.student_outputs import AGREEMENT, ChunkedOutputs, Comparison, StudentOutputs, WholeOutputs
from hf_pe.distill.teachers.source import TeacherSource
from hf_pe.tasks import Batch, Head, Task


class ObjectiveValue(NamedTuple):
    """Holds the objective on one batch.

    Attributes:
        loss: the objective, with gradients. *Shape:* ()
        terms: each loss by name, as the weighted mean over teachers, without gradients; on request also `agreement`.
        signals: signals of the student.
        teacher_seconds: time that the outputs of the teachers took.
    """

    loss: torch.Tensor
    terms: dict[str, torch.Tensor]
    signals: Signals
    teacher_seconds: float = 0.0


@dataclass(frozen=True)
class Objective:
    """Computes the loss of a student on a batch; the docstring of the module has the formula.

    `hf_pe.distill.build.build` makes one from the settings of a recipe and checks that models, losses and task fit.

    Attributes:
        task: computes the signals of all models.
        weights: weight of each loss, by its name in `hf_pe.distill.losses.registry.LOSSES`.
        teachers: with weights that need not add up to 1.
        temperature: of the logits.
        beta: of the Jensen-Shannon divergence.
        head: computes the student's logits in chunks; None to compute them as the model does.
        layer_mappings: for each teacher, from which of its layers each layer of the student learns; empty: evenly.
        label_head: the student's linear layer to the labels, after `hf_pe.stitching.reuse_`, if a loss compares the
            features that it reads.

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
        """The signals that the losses need of student and teachers."""
        needed = signals_needed(self.weights)
        return SignalRequest(self.task, "hidden_states" in needed, "attentions" in needed)

    @property
    def needs_teacher(self) -> bool:
        """Whether a loss compares the student with a teacher."""
        return any(LOSSES[name].needs_teacher for name in self.weights)

    @property
    def projections(self) -> list[nn.Module]:
        """The linear projections of the student's hidden states to the widths of teachers; they are trained too."""
        return [projection for mapping in self.layer_mappings for projection in mapping.projections]

    def __call__(
        self,
        model: Any,
        batch: Batch,
        *,
        progress: float = 0.0,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        agreement: bool = False,
        step_fractions: Mapping[Unit, torch.Tensor] | None = None,
    ) -> ObjectiveValue:
        """Compute the student's loss on `batch`.

        Args:
            model: the student, possibly wrapped (adapters, DDP).
            batch: as the task's collator makes it.
            progress: fraction of the optimizer steps that are done, 0 to 1; schedules depend on it.
            autocast: returns the context in which a teacher runs; called for each teacher.
            agreement: also compute how far student and teachers agree.
            step_fractions: the f_l of the formula by unit: the fraction of an optimizer step's rows, tokens, ... in
                this batch. Default: 1.
        """
        settings = LossSettings(at(self.temperature, progress), self.beta)
        weights = {name: at(weight, progress) for name, weight in self.weights.items()}
        total = _Total(weights, dict.fromkeys(UNITS, torch.ones(())) if step_fractions is None else step_fractions)
        outputs = self._student_outputs(model, batch)
        stopwatch = Stopwatch()
        needs_targets = agreement or self.needs_teacher
        for number, (teacher, fraction, mapping) in enumerate(self._teachers_and_mappings()):
            targets: Signals = {}
            if needs_targets:
                with torch.no_grad(), autocast(), stopwatch.running():
                    targets = dict(outputs.teacher_signals(teacher, batch, self.request))
                if isinstance(targets.get("logits"), ChunkedLogits):  # its head computes the logits later
                    targets["logits"] = TimedLogits(targets["logits"], stopwatch)
            fractions = {n: fraction if LOSSES[n].needs_teacher else 1.0 for n in weights}
            # losses without a teacher are added once, with the first teacher
            used_weights = {n: weights[n] * fractions[n] for n in weights if number == 0 or LOSSES[n].needs_teacher}
            if not used_weights and not agreement:
                continue
            comparison = outputs.compare(used_weights, targets, settings._replace(layers=mapping), agreement=agreement)
            total.add(comparison, fractions | {AGREEMENT: fraction})
        return ObjectiveValue(total.loss, total.detached_terms, outputs.signals, stopwatch.seconds)

    def _student_outputs(self, model: Any, batch: Batch) -> StudentOutputs:
        if self.head is None:
            return WholeOutputs.of(model, batch, self.request, self.label_head)
        return ChunkedOutputs.of(model, batch, self.request, self.head)

    def _teachers_and_mappings(self) -> list[tuple[TeacherSource, float, LayerMapping]]:
        """Return each teacher with its fraction a_k of all weights and its layer mapping."""
        sum_of_weights = sum(teacher.weight for teacher in self.teachers)
        fractions = [teacher.weight / sum_of_weights for teacher in self.teachers]
        mappings = self.layer_mappings or [LayerMapping()] * len(self.teachers)
        return list(zip(self.teachers, fractions, mappings, strict=True))


class _Total:
    """Adds up the losses of a batch over the teachers.

    Args:
        weights: of the losses, by name.
        step_fractions: see `Objective.__call__`.
    """

    def __init__(self, weights: Mapping[str, float], step_fractions: Mapping[Unit, torch.Tensor]) -> None:
        self.weights = weights
        self.step_fractions = step_fractions
        self.losses: dict[str, torch.Tensor] = {}
        self.detached: dict[str, torch.Tensor] = {}
        self.weighted_sums: list[torch.Tensor] = []

    def add(self, comparison: Comparison, fractions: Mapping[str, float]) -> None:
        """Add the comparison of the student with one teacher.

        Args:
            comparison: losses and agreement.
            fractions: factor of each of them: the teacher's fraction a_k, or 1 for losses without a teacher.
        """
        for sums, values in ((self.losses, comparison.losses), (self.detached, comparison.detached)):
            for name, value in values.items():
                term = fractions[name] * (value * self._step_fraction(name).to(value.device))
                sums[name] = sums[name] + term if name in sums else term
        if comparison.weighted_sum is not None:
            # all losses that are computed in chunks are means over predictions
            step_fraction = self.step_fractions["predictions"].to(comparison.weighted_sum.device)
            self.weighted_sums.append(comparison.weighted_sum * step_fraction)

    @property
    def loss(self) -> torch.Tensor:
        """The weighted sum of all losses."""
        return torch.stack(
            [*self.weighted_sums, *(self.weights[name] * value for name, value in self.losses.items())]
        ).sum()

    @property
    def detached_terms(self) -> dict[str, torch.Tensor]:
        """Each loss by name without gradients, and the agreement."""
        return {name: value.detach() for name, value in (self.losses | self.detached).items()}

    def _step_fraction(self, name: str) -> torch.Tensor:
        return self.step_fractions["predictions" if name == AGREEMENT else LOSSES[name].mean_over]
