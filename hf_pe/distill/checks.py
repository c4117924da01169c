"""Refuses losses, models and tasks that do not fit together, before training."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_pe.distill.attention import recordable, recorded_attentions
from hf_pe.distill.losses.logits import TopKLogits
from hf_pe.distill.losses.masked_mean import Signals
from hf_pe.distill.losses.registry import LOSSES, losses_of
from hf_pe.distill.teachers.cached import CachedTeacher
from hf_pe.distill.teachers.compatible import require_same_labels, require_same_vocabulary
from hf_pe.distill.teachers.live import LiveTeacher
from hf_pe.distill.teachers.source import TeacherSource
from hf_pe.dummies.outputs import difference
from hf_pe.errors import UsageError
from hf_pe.tasks import Batch, Task, require_classes

MAX_CHANGE = 1e-3
"""Largest relative change of a float32 model's outputs when its attention is recorded; rounding causes about 1e-6."""
ROUNDINGS = 16
"""Largest change for a 16-bit model, in units of its dtype's eps; 12 layers of a Llama cause 8."""


def require_same_classes(
    student: PreTrainedModel, teachers: Sequence[TeacherSource], task: Task, used_vocabulary: int | None
) -> None:
    """Refuse teachers whose labels or vocabulary differ from the student's.

    Args:
        student: without adapters around it.
        teachers: of the student.
        task: of all models.
        used_vocabulary: see `used_vocabulary_size`.

    Raises:
        UsageError: labels or vocabularies differ, or a classifier has a single output.
    """
    live = [teacher for teacher in teachers if isinstance(teacher, LiveTeacher)]
    if task.names_labels:
        for teacher in live:
            require_same_labels(student.config, teacher.model.config)
    if task.classifies:
        require_classes(student.config)
    if task.predicts_tokens:
        sizes = [teacher.classes for teacher in teachers if isinstance(teacher, CachedTeacher)]
        for size in (*sizes, *(_vocabulary_size(teacher.model) for teacher in live)):
            require_same_vocabulary(_vocabulary_size(student), size, used_vocabulary)


def require_task_signals(losses: Iterable[str], task: Task, signals: Signals) -> None:
    """Refuse losses that compare a signal which models of the task do not compute.

    Args:
        losses: by name.
        task: that computed `signals`.
        signals: of a batch, with hidden states.

    Raises:
        UsageError: there are such losses; names those that are possible.
    """
    available = {*signals, "attentions", *(["features"] if task.classifies else [])}
    for name in losses:
        needs = LOSSES[name].needs
        if needs not in available:
            allowed = ", ".join(losses_of(available))
            raise UsageError(f"distil.losses.{name}: task '{task.name}' has no {needs}; expected {allowed}.")


def require_signals(weights: Mapping[str, Any], task: Task, student: Signals, targets: Sequence[Signals]) -> None:
    """Refuse losses that compare signals which are missing or have different widths.

    Args:
        weights: by name of the loss.
        task: of all models.
        student: signals of the student.
        targets: signals of each teacher.

    Raises:
        UsageError: see `require_task_signals`; a cache holds too few classes, or widths differ.
    """
    require_task_signals(weights, task, student)
    for name in weights:
        loss = LOSSES[name]
        for teacher in targets:
            target = teacher.get(loss.needs)
            if isinstance(target, TopKLogits) and not loss.top_k_suffices:
                raise UsageError(
                    f"distil.losses.{name}: the cache holds the most likely classes only; leave this loss out."
                )
            if loss.needs not in ("logits", "embeddings"):
                continue
            width, target_width = (_width(signals[loss.needs]) for signals in (student, teacher))
            if width != target_width and not (loss.needs == "logits" and task.predicts_tokens):
                raise UsageError(
                    f"distil.losses.{name}: expected the student's {loss.needs} as wide as the teacher's "
                    f"({target_width}), got {width}. Use losses of the logits, or keep the hidden width."
                )


def require_attention(student: PreTrainedModel, teachers: Sequence[LiveTeacher], task: Task, batch: Batch) -> None:
    """Check that the attention of all models can be recorded without a change of their outputs.

    Raises:
        UsageError: no attention is recorded, or outputs change.
    """
    for model in (student, *(teacher.model for teacher in teachers)):
        with torch.no_grad():
            plain = task.signals(model, batch)
            with recordable(model), recorded_attentions() as attentions:
                recorded = task.signals(model, batch)
        is_half = model.dtype.itemsize == 2
        tolerance = max(MAX_CHANGE, ROUNDINGS * torch.finfo(model.dtype).eps) if is_half else MAX_CHANGE
        outputs = [[s[n].float() for n in ("logits", "embeddings") if n in s] for s in (plain, recorded)]
        sizes = {attention.weights.shape[2:] for attention in attentions}
        if not attentions or not difference(*outputs) <= tolerance or len(sizes) > 1:
            names = " and ".join(f"`{name}`" for name in losses_of(["attentions"]))
            raise UsageError(
                f"distil.losses: the attention of {type(model).__name__} cannot be recorded (it has an implementation "
                f"of its own, or an encoder and a decoder); leave out {names}."
            )


def _vocabulary_size(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)


def _width(signal: Any) -> int | None:
    """Return the size of the last dimension of a tensor, or of the first of some; None for a single number."""
    tensor = signal[0] if isinstance(signal, tuple) else signal
    return tensor.shape[-1] if tensor.ndim else None
