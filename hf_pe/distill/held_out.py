"""Holds a few training rows out, on which a student is evaluated during its training."""

import os
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from hf_pe import progress
from hf_pe.distill.settings import DistillationSettings
from hf_pe.distill.teachers.live import LiveTeacher
from hf_pe.distill.teachers.source import TeacherSource
from hf_pe.errors import UsageError
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
    settings: DistillationSettings, data: TaskData, model: PreTrainedModel, teachers: Sequence[TeacherSource]
) -> HeldOut | None:
    """Return training rows to evaluate on; None if evaluations are off or there are too few rows.

    The evaluation rows of the data are never used: weights that are selected on them would flatter the report. The
    number of rows is chosen such that two evaluations take at most the stated share of the time even if a row is
    evaluated no faster than it is trained on; it does not depend on measured times.

    Args:
        settings: of the distillation.
        data: prepared for training.
        model: the student before training.
        teachers: that the student learns from. Embeddings without scores are compared with a single live one.
    """
    if settings.evaluation_share == 0:
        return None
    try:
        held = _held_out(settings, data, model)
    except UsageError as reason:
        progress.say(f"distillation: no evaluation during training: {reason}")
        return None
    live = [teacher.model for teacher in teachers if isinstance(teacher, LiveTeacher)]
    teacher = live[0] if len(live) == len(teachers) == 1 else data.teacher
    return replace(held, data=replace(held.data, collate=data.collate, teacher=teacher))


def _held_out(settings: DistillationSettings, data: TaskData, model: PreTrainedModel) -> HeldOut:
    """Return the rows.

    Raises:
        UsageError: none can be held out.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("several processes train")
    rows_of_step = settings.batch_size * settings.gradient_accumulation_steps
    # how many steps fit into minutes is not known yet: at least one pass over the rows is assumed
    trained_rows = settings.most_steps * rows_of_step if settings.most_steps else len(data.train)
    most = min(int(settings.evaluation_share * trained_rows / EVALUATIONS), MOST_ROWS)
    if most < FEWEST_ROWS:
        raise UsageError(f"the share of the time allows fewer than {FEWEST_ROWS} rows")
    held = data.task.hold_out(data, model.config, FRACTION, most, settings.seed)
    if len(held.rows) < FEWEST_ROWS:
        raise UsageError(f"fewer than {FEWEST_ROWS / FRACTION:.0f} training rows")
    return held


def without_rows(data: TaskData, rows: Sequence[int]) -> TaskData:
    """Return the data without these training rows."""
    dropped = set(rows)
    return replace(data, train=data.train.select([row for row in range(len(data.train)) if row not in dropped]))
