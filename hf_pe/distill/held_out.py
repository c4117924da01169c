"""Holds a few training rows out, on which a student is evaluated during its training."""

import os
from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from hf_pe import progress
from hf_pe.distill.evaluation import stored_examples
from hf_pe.distill.evaluation_times import Clock
from hf_pe.distill.settings import DistillationSettings
from hf_pe.distill.teachers.live import LiveTeacher
from hf_pe.distill.teachers.source import TeacherSource
from hf_pe.errors import UsageError
from hf_pe.quantizers.registry import is_quantized
from hf_pe.tasks import HeldOut, TaskData

MOST_ROWS = 256
"""Most examples that are held out."""
FRACTION = 0.05
"""Largest fraction of the training examples that is held out."""
FEWEST_ROWS = 32
"""Fewest examples: a metric on fewer says nothing, so that none are held out."""
EVALUATIONS = 2
"""Number of evaluations, before and after training, that the sample is small enough for."""


def held_out(
    settings: DistillationSettings,
    data: TaskData,
    learner: PreTrainedModel,
    teachers: Sequence[TeacherSource],
    clock: Clock,
    checkpoint: str | None = None,
) -> HeldOut | None:
    """Return training rows to evaluate on; None if evaluations are off or there are too few rows.

    The evaluation rows of the data are never used: weights that are selected on them would flatter the report. The
    rows are so few that two evaluations take at most the stated share of the time. Where steps limit the training,
    their number does not depend on measured times: it is assumed that a row is evaluated no faster than it is trained
    on. Where minutes limit it, the student is timed on a few rows.

    Args:
        settings: of the distillation.
        data: prepared for training.
        learner: the student.
        teachers: that the student learns from. Embeddings without scores are compared with a single live one.
        clock: measures the evaluation of a few rows.
        checkpoint: of the training that is resumed; the rows are those that it held out.
    """
    if settings.evaluation_share == 0:
        return None
    try:
        examples = _examples(settings, data, learner, clock) if checkpoint is None else stored_examples(checkpoint)
        held = _drawn(settings, data, learner, examples)
    except UsageError as reason:
        progress.say(f"distillation: no evaluation during training: {reason}")
        return None
    live = [teacher.model for teacher in teachers if isinstance(teacher, LiveTeacher)]
    teacher = live[0] if len(live) == len(teachers) == 1 else data.teacher
    return replace(held, data=replace(held.data, collate=data.collate, teacher=teacher))


def _examples(settings: DistillationSettings, data: TaskData, learner: PreTrainedModel, clock: Clock) -> int:
    """Return the most examples that two evaluations have time for.

    Raises:
        UsageError: none can be held out.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("several processes train")
    limits = [MOST_ROWS]
    if settings.most_steps:
        trained_rows = settings.most_steps * settings.batch_size * settings.gradient_accumulation_steps
        limits.append(int(settings.evaluation_share * trained_rows / EVALUATIONS))
    if settings.minutes:
        seconds = settings.evaluation_share * 60 * settings.minutes / EVALUATIONS
        limits.append(int(seconds / _seconds_per_example(_drawn(settings, data, learner, FEWEST_ROWS), learner, clock)))
    return min(limits)


def _drawn(settings: DistillationSettings, data: TaskData, learner: PreTrainedModel, examples: int) -> HeldOut:
    """Return the rows of this number of examples.

    Raises:
        UsageError: these are too few.
    """
    if examples < FEWEST_ROWS:
        raise UsageError(f"the share of the time allows fewer than {FEWEST_ROWS} rows")
    held = data.task.hold_out(data, learner.config, FRACTION, examples, settings.seed)
    if held.examples < FEWEST_ROWS:
        raise UsageError(f"fewer than {FEWEST_ROWS / FRACTION:.0f} training rows")
    return held


def _seconds_per_example(few: HeldOut, learner: PreTrainedModel, clock: Clock) -> float:
    """Return how long the evaluation of an example takes where the learner is trained."""
    if torch.accelerator.is_available() and not is_quantized(learner):  # the Trainer would move it later
        learner.to(torch.accelerator.current_accelerator())  # type: ignore[arg-type]
    start = clock()
    with torch.random.fork_rng(devices=[]):
        few.data.task.evaluate(learner, few.data)
    return max(clock() - start, 1e-9) / few.examples


def without_rows(data: TaskData, rows: Sequence[int]) -> TaskData:
    """Return the data without these training rows."""
    dropped = set(rows)
    return replace(data, train=data.train.select([row for row in range(len(data.train)) if row not in dropped]))
