"""Explains a loss that became infinite or NaN: which loss, on which rows, and whether a teacher is the cause."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from transformers.trainer_utils import sort_checkpoints

from hf_pe.distill.objective import Objective
from hf_pe.distill.signals import SignalRequest
from hf_pe.distill.teachers.live import LiveTeacher
from hf_pe.overflow import overflow_of, overflows
from hf_pe.tasks import Batch


def why_not_finite(trainer: Any, objective: Objective, terms: Mapping[str, torch.Tensor], batch: Batch) -> str:
    """Return the error message: step, losses, rows, the checkpoints that remain, the cause and the way out.

    Args:
        trainer: the Trainer.
        objective: of the training.
        terms: losses of the batch, by name.
        batch: on which a loss is not finite.
    """
    wrong = [f"{name} ({float(value)})" for name, value in terms.items() if not torch.isfinite(value)]
    numbers = rows_of(batch, trainer.train_dataset)
    first = next(iter(batch.values()))
    rows = f"training rows {numbers}" if numbers else f"a batch of {tuple(first.shape)}"
    checkpoints = sort_checkpoints(trainer.args.output_dir) if trainer.args.save_strategy != "no" else []
    kept = f"; checkpoints in {trainer.args.output_dir} are unchanged" if checkpoints else ""
    return (
        f"Step {trainer.state.global_step + 1}: {', '.join(wrong) or 'the sum of all terms'} is not finite in "
        f"{rows}. The run stopped before these weights changed{kept}. "
        + (_which_teacher(objective, batch) or "Check these rows, lower learning_rate, or train in float32.")
    )


def rows_of(batch: Batch, rows: Any) -> list[int]:
    """Return the indices of the training rows in a batch, by their tokens; [] if they cannot be identified."""
    if "input_ids" not in batch or not hasattr(rows, "column_names") or "input_ids" not in rows.column_names:
        return []
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    texts = {tuple(ids[kept].tolist()) for ids, kept in zip(batch["input_ids"], mask, strict=True)}
    return [number for number, ids in enumerate(rows["input_ids"]) if tuple(ids) in texts][: len(texts)]


def _which_teacher(objective: Objective, batch: Batch) -> str:
    """Return sentences on the teacher whose own outputs on a batch are not finite; "" if all are finite."""
    for number, teacher in enumerate(objective.teachers, 1):
        signals = partial(teacher.signals, batch, SignalRequest(objective.task))
        wrong = [name for name, value in signals().items() if not _is_finite(value)]
        if not wrong:
            continue
        which = f"teacher {number}" if len(objective.teachers) > 1 else "the teacher"
        overflow = overflow_of(teacher.model, signals) if isinstance(teacher, LiveTeacher) else None
        way_out = overflow or "Load it in float32 or bfloat16, check these rows, or use another teacher."
        return f"The cause is {which}: its {' and '.join(wrong)} on these rows are not finite. {way_out}"
    return ""


def _is_finite(signal: Any) -> bool:
    """Return whether no tensor of a signal contains NaN or plus infinity."""
    return all(map(_is_finite, signal)) if isinstance(signal, list | tuple) else not overflows(signal)
