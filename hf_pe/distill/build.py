"""Builds the objective of a distillation from its settings, its models and one batch, after all checks.

The batch is needed to see which signals the models have, how their heads compute logits, and which layers of student
and teacher are similar.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy import label_head
from hf_pe.distill.checks import require_attention, require_same_classes, require_signals
from hf_pe.distill.layer_map import LayerMapping
from hf_pe.distill.layer_states import DEFAULT_LAYERS, Layers, layer_mapping
from hf_pe.distill.losses.logits import TopKLogits
from hf_pe.distill.losses.masked_mean import Signals, counted_features
from hf_pe.distill.losses.registry import LOSSES, default_losses, losses_of, signals_needed
from hf_pe.distill.objective import Objective
from hf_pe.distill.schedule import Scheduled
from hf_pe.distill.signals import SignalRequest
from hf_pe.distill.teachers.live import LiveTeacher, is_sharded
from hf_pe.distill.teachers.source import TeacherSource
from hf_pe.errors import UsageError
from hf_pe.modes import evaluating
from hf_pe.tasks import LARGE, Batch, Head, Task, as_read_by, few_tokens, keeps_logits, states

ATTENTION_TOKENS = 32
"""Number of tokens on which the recording of a language model's attention is checked."""


@dataclass(frozen=True)
class ObjectiveSettings:
    """Holds the settings of an objective.

    Attributes:
        losses: weights by name; empty for the task's default.
        temperature: of the logits.
        beta: of the Jensen-Shannon divergence.
        layers: from which hidden state of the teacher each hidden state of the student learns.
        seed: of the initial weights of projections.
    """

    losses: Mapping[str, Scheduled] = field(default_factory=dict)
    temperature: Scheduled = 2.0
    beta: float = 0.5
    layers: Layers = DEFAULT_LAYERS
    seed: int = 0


def build(
    student: Any,
    teachers: Sequence[TeacherSource],
    task: Task,
    batch: Batch,
    settings: ObjectiveSettings,
    *,
    used_vocabulary: int | None = None,
) -> Objective:
    """Return the objective for these models, with copies of the teachers that have the heads it needs.

    The models of `teachers` are moved to the student's device.

    Args:
        student: possibly with adapters.
        teachers: see `Objective`.
        task: computes the signals of all models.
        batch: some rows, on the student's device.
        settings: of the objective.
        used_vocabulary: see `used_vocabulary_size`.

    Raises:
        UsageError: a teacher has other labels or another vocabulary; a classifier has a single output; a loss compares
            a signal that the task or a teacher does not have; attention cannot be recorded; widths or layers do not
            fit.
    """
    plain: PreTrainedModel = student.get_base_model() if hasattr(student, "get_base_model") else student
    require_same_classes(plain, teachers, task, used_vocabulary)
    needed = signals_needed(settings.losses)
    live = [teacher for teacher in teachers if isinstance(teacher, LiveTeacher)]
    student_head, feature_scale = None, None
    with evaluating(plain):
        for teacher in teachers:
            teacher.to(plain.device)
        few = few_tokens(batch)
        request = SignalRequest(task, hidden="hidden_states" in needed)
        with torch.no_grad():
            signals = task.signals(plain, few, hidden=True)
            targets = [teacher.signals(few, request) for teacher in teachers]
            models = (plain, *(teacher.model for teacher in live)) if request.hidden else ()
            hidden_states = [_hidden_states(model, task, batch) for model in models]
        if "attentions" in needed:
            require_attention(plain, live, task, few_tokens(batch, rows=2, tokens=ATTENTION_TOKENS))
        if "features" in needed:
            student_head, teachers = with_label_heads(plain, teachers)
            feature_scale = _feature_scale(teachers[0], task, batch)
    weights = dict(settings.losses) or default_losses(signals)
    require_signals(weights, task, signals, targets)
    mappings = _layer_mappings(settings, hidden_states, _tokens(signals, batch))
    if feature_scale is not None:
        mappings = [mapping._replace(feature_scale=feature_scale) for mapping in mappings or [LayerMapping()]]
    head = None
    # heads are called outside of the modules that gather the shards of their parameters
    sharded = any(map(is_sharded, (plain, *(teacher.model for teacher in live))))
    if not sharded and _in_chunks(weights, task, targets):
        head, teachers = with_heads(student, teachers, few)
    return Objective(task, weights, teachers, settings.temperature, settings.beta, head, mappings, student_head)


def with_heads(
    student: Any, teachers: Sequence[TeacherSource], batch: Batch
) -> tuple[Head | None, Sequence[TeacherSource]]:
    """Return the student's head, and teachers with their heads, to compute logits in chunks.

    If `Head.of` does not support one of the models, there is no head and the teachers are unchanged.

    Args:
        student: possibly with adapters.
        teachers: those that are models get a head.
        batch: inputs on which heads are tried.
    """
    heads = {n: Head.of(teacher.model, batch) for n, teacher in enumerate(teachers) if isinstance(teacher, LiveTeacher)}
    head = Head.of(student, batch)
    if head is None or None in heads.values():
        return None, teachers
    return head, [
        replace(teacher, head=heads[n]) if isinstance(teacher, LiveTeacher) else teacher
        for n, teacher in enumerate(teachers)
    ]


def with_label_heads(
    student: PreTrainedModel, teachers: Sequence[TeacherSource]
) -> tuple[nn.Module, list[LiveTeacher]]:
    """Return the student's linear layer to the labels, and the teacher with its own.

    Raises:
        UsageError: a model has no such layer, or there is not exactly one teacher that is a model.
    """
    names = ", ".join(losses_of(["features"]))
    live = [teacher for teacher in teachers if isinstance(teacher, LiveTeacher)]
    if len(live) != 1:
        raise UsageError(f"distil.losses.{names}: expected one live teacher whose head is reused, got {len(live)}.")
    models = (student, live[0].model)
    heads = [label_head(model.config, type(model)) for model in models]
    modules = [model.get_submodule(head or "") for model, head in zip(models, heads, strict=True)]
    if None in heads or not all(isinstance(module, nn.Linear) for module in modules):
        raise UsageError(
            f"distil.losses.{names}: expected one linear layer to the labels in student and teacher, "
            f"got {' and '.join(head or 'none' for head in heads)}. Leave this loss out."
        )
    return modules[0], [replace(live[0], label_head=modules[1])]


def _hidden_states(model: PreTrainedModel, task: Task, batch: Batch) -> tuple[torch.Tensor, ...]:
    """Return the hidden states of all rows without computing their logits, or row by row if the model cannot do so."""
    batch = batch | as_read_by(model, batch)
    if few_tokens(batch) is batch:
        return tuple(task.signals(model, batch, hidden=True)["hidden_states"])
    if task.predicts_tokens and keeps_logits(model):
        return states(model, batch)
    rows = [{k: v[i : i + 1] for k, v in batch.items()} for i in range(len(batch["input_ids"]))]
    by_row = [task.signals(model, row, hidden=True)["hidden_states"] for row in rows]
    return tuple(torch.cat(layer) for layer in zip(*by_row, strict=True))


def _tokens(signals: Signals, batch: Batch) -> torch.Tensor | None:
    """Return the mask of the tokens in `batch` that count: those with a label for a decoder, else input tokens."""
    return batch["labels"] != -100 if "tokens" in signals else batch.get("attention_mask")


def _layer_mappings(
    settings: ObjectiveSettings, hidden_states: Sequence[tuple[torch.Tensor, ...]], mask: torch.Tensor | None
) -> list[LayerMapping]:
    """Return a mapping for each teacher; `hidden_states` are the student's, then those of each teacher."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return [layer_mapping(settings.layers, hidden_states[0], states, mask) for states in hidden_states[1:]]


@torch.no_grad()
def _feature_scale(teacher: TeacherSource, task: Task, batch: Batch) -> torch.Tensor:
    """Return the mean square of the inputs of the teacher's head at the positions that count."""
    signals = teacher.signals(batch, SignalRequest(task))
    return counted_features(signals["features"], signals).float().square().mean()


def _in_chunks(weights: Mapping[str, Any], task: Task, targets: Sequence[Signals]) -> bool:
    """Return whether the losses allow logits to be read in chunks, and the vocabulary is large enough."""
    by_position = {name for name in weights if LOSSES[name].by_position is not None}
    without_logits = {*losses_of(["hidden_states", "attentions"])}
    if not by_position or {*weights} - by_position - without_logits or not task.predicts_tokens:
        return False
    return all(isinstance(s["logits"], TopKLogits) or s["logits"].shape[-1] >= LARGE for s in targets)
