"""From what a recipe says and what models give on one batch to an objective: checks, heads, layer mappings."""

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
from hf_pe.distill.losses.masked_mean import Signals, places
from hf_pe.distill.losses.registry import LOSSES, default_losses, losses_of, signals_needed
from hf_pe.distill.objective import Objective
from hf_pe.distill.schedule import Scheduled
from hf_pe.distill.signals import SignalRequest
from hf_pe.distill.teachers.live import LiveTeacher, is_sharded
from hf_pe.distill.teachers.source import TeacherSource
from hf_pe.errors import UsageError
from hf_pe.modes import evaluating
from hf_pe.tasks import LARGE, Batch, Head, Task, as_read_by, few_tokens, keeps_logits, states

WATCHED = 32
"""Tokens of a language model whose attention is looked at first."""


@dataclass(frozen=True)
class ObjectiveSettings:
    """What an objective is built from besides models and rows.

    Attributes:
        losses: weights by name; none: the task's default.
        temperature: of the logits.
        beta: of the Jensen-Shannon divergence.
        layers: which of the teacher's hidden states each of the student's learns from.
        seed: of the projections' first weights.
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
    known: int | None = None,
) -> Objective:
    """Return the objective for these models, with teachers that have what it asks them for.

    The teachers that are given stay as they are, but for the device that their models are on.

    Args:
        student: with adapters perhaps.
        teachers: see `Objective`.
        task: gives the signals of all models.
        batch: some rows, on the student's device.
        settings: of the objective.
        known: how many rows of a vocabulary the tokenizer uses, see `known_ids`.

    Raises:
        UsageError: a teacher has other labels or another vocabulary; a classifier has one output; a loss needs what the
            task, a teacher or the attention does not give; widths or layers do not fit.
    """
    plain: PreTrainedModel = student.get_base_model() if hasattr(student, "get_base_model") else student
    require_same_classes(plain, teachers, task, known)
    needed = signals_needed(settings.losses)
    live = [teacher for teacher in teachers if isinstance(teacher, LiveTeacher)]
    own_head, feature_scale = None, None
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
            require_attention(plain, live, task, few_tokens(batch, rows=2, tokens=WATCHED))
        if "features" in needed:
            own_head, teachers = with_label_heads(plain, teachers)
            feature_scale = _feature_scale(teachers[0], task, batch)
    weights = dict(settings.losses) or default_losses(signals)
    require_signals(weights, task, signals, targets)
    mappings = _layer_mappings(settings, hidden_states, _tokens(signals, batch))
    if feature_scale is not None:
        mappings = [mapping._replace(feature_scale=feature_scale) for mapping in mappings or [LayerMapping()]]
    head = None
    if not any(map(is_sharded, (plain, *(each.model for each in live)))) and _in_chunks(weights, task, targets):
        head, teachers = with_heads(student, teachers, few)  # they are called outside of what gathers shards
    return Objective(task, weights, teachers, settings.temperature, settings.beta, head, mappings, own_head)


def with_heads(
    student: Any, teachers: Sequence[TeacherSource], batch: Batch
) -> tuple[Head | None, Sequence[TeacherSource]]:
    """Return the student's head, and teachers that have theirs; no head, and the teachers as they are, where one of the
    models makes its logits in a way that is not known.

    Args:
        student: with adapters perhaps.
        teachers: of which those that are models get a head.
        batch: heads are found out on it.
    """
    heads = {n: Head.of(each.model, batch) for n, each in enumerate(teachers) if isinstance(each, LiveTeacher)}
    own = Head.of(student, batch)
    if own is None or None in heads.values():
        return None, teachers
    return own, [
        replace(each, head=heads[n]) if isinstance(each, LiveTeacher) else each for n, each in enumerate(teachers)
    ]


def with_label_heads(
    student: PreTrainedModel, teachers: Sequence[TeacherSource]
) -> tuple[nn.Module, list[LiveTeacher]]:
    """Return the student's map to the labels, made one with a stitching layer, and the teacher with its own.

    Raises:
        UsageError: there is no such map, or not one teacher.
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
            f"distil.losses.{names}: expected one linear map to the labels in student and teacher, "
            f"got {' and '.join(head or 'none' for head in heads)}. Leave this loss out."
        )
    return modules[0], [replace(live[0], label_head=modules[1])]


def _hidden_states(model: PreTrainedModel, task: Task, batch: Batch) -> tuple[torch.Tensor, ...]:
    """Return hidden states of all rows, without their logits; where a model cannot leave these out, row by row."""
    batch = batch | as_read_by(model, batch)
    if few_tokens(batch) is batch:
        return tuple(task.signals(model, batch, hidden=True)["hidden_states"])
    if task.predicts_tokens and keeps_logits(model):
        return states(model, batch)
    rows = [{k: v[i : i + 1] for k, v in batch.items()} for i in range(len(batch["input_ids"]))]
    by_row = [task.signals(model, row, hidden=True)["hidden_states"] for row in rows]
    return tuple(torch.cat(layer) for layer in zip(*by_row, strict=True))


def _tokens(signals: Signals, batch: Batch) -> torch.Tensor | None:
    """Return which tokens of `batch` count: labels where the task says which tokens count, else inputs."""
    return batch["labels"] != -100 if "tokens" in signals else batch.get("attention_mask")


def _layer_mappings(
    settings: ObjectiveSettings, hidden_states: Sequence[tuple[torch.Tensor, ...]], mask: torch.Tensor | None
) -> list[LayerMapping]:
    """Return a mapping for each teacher; `hidden_states` are the student's, then those of each teacher."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return [layer_mapping(settings.layers, hidden_states[0], each, mask) for each in hidden_states[1:]]


@torch.no_grad()
def _feature_scale(teacher: TeacherSource, task: Task, batch: Batch) -> torch.Tensor:
    """Return the mean square of what the teacher's head reads where predictions count."""
    signals = teacher.signals(batch, SignalRequest(task))
    return places(signals["features"], signals).float().square().mean()


def _in_chunks(weights: Mapping[str, Any], task: Task, targets: Sequence[Signals]) -> bool:
    """Return whether logits can be read in chunks, and are worth it."""
    by_position = {name for name in weights if LOSSES[name].by_position is not None}
    beside = {*losses_of(["hidden_states", "attentions"])}
    if not by_position or {*weights} - by_position - beside or not task.predicts_tokens:
        return False
    return all(isinstance(s["logits"], TopKLogits) or s["logits"].shape[-1] >= LARGE for s in targets)
