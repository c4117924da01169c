"""Trains a student by the settings of a distillation with the stock Trainer."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hf_pe.anatomy import label_head
from hf_pe.distill.build import build
from hf_pe.distill.checkpoint import MarkWhole, ended_at, last_whole_checkpoint, load_ended_
from hf_pe.distill.duration import ENDLESS, Duration
from hf_pe.distill.evaluation import StudentEvaluation
from hf_pe.distill.evaluation_times import EvaluationTimes
from hf_pe.distill.held_out import held_out, without_rows
from hf_pe.distill.kept_weights import KeptWeights
from hf_pe.distill.learner import learner_of, student_of
from hf_pe.distill.limited_trainer import LimitedTrainer
from hf_pe.distill.objective import Objective
from hf_pe.distill.precision import with_float_inputs
from hf_pe.distill.sample import sample_batch
from hf_pe.distill.settings import DistillationSettings
from hf_pe.distill.teachers.cached import with_rows
from hf_pe.distill.teachers.compatible import used_vocabulary_size
from hf_pe.distill.teachers.live import LiveTeacher
from hf_pe.distill.teachers.source import TeacherSource
from hf_pe.distill.teaching import training_teachers
from hf_pe.distill.trainer import DistillationTrainer
from hf_pe.errors import UsageError
from hf_pe.modes import evaluating
from hf_pe.progress import advance, say, warn
from hf_pe.recipe import StageState
from hf_pe.report import Training
from hf_pe.stitching import StitchPoint, remove_stitching_, reuse_
from hf_pe.tasks import TaskData
from hf_pe.training_curve import TrainingCurve

clock = time.perf_counter
"""Measures the time of training and of evaluations; tests replace it."""


def trained(settings: DistillationSettings, state: StageState) -> StageState:
    """Return the state with a trained copy of the student in evaluation mode, and with how it was trained.

    Args:
        settings: of the distillation.
        state: with the student before training; see `Distillation.apply`.

    Raises:
        NotFiniteError: a loss became infinite or NaN; checkpoints remain.
    """
    learner = learner_of(state.model, settings)
    data = _training_data(settings, state.data, learner)
    with tempfile.TemporaryDirectory() as scratch, training_teachers(settings, state) as teachers:
        batch = sample_batch(learner, data)
        if settings.reuses_head:
            _reuse_head_(learner, teachers, state.data)
        used_vocabulary = used_vocabulary_size(data.processor)
        objective = build(
            learner, teachers, data.task, batch, settings.objective_settings, used_vocabulary=used_vocabulary
        )
        duration = Duration(settings.most_steps, settings.minutes, clock)
        checkpoint = _resumed_checkpoint(settings, state)
        evaluation = _evaluation(settings, state, learner, teachers, duration, Path(scratch), checkpoint)
        if evaluation is not None:
            data = without_rows(data, evaluation.held_out.rows)
        trainer = _trainer(settings, state, data, learner, objective, duration, scratch, evaluation)
        _train(trainer, duration, evaluation, checkpoint)
        # with bfloat16 the model's forward still has the Trainer's autocast
        learner = trainer.accelerator.unwrap_model(learner, keep_fp32_wrapper=False)
        curve = _selected_(evaluation, trainer.state.global_step)
    if objective.label_head is not None:
        remove_stitching_(objective.label_head)
    student = student_of(learner, state.model, settings)
    losses = [(int(e["step"]), float(e["loss"])) for e in trainer.state.log_history if "loss" in e]
    return state.with_model(student, losses, curve, _record(trainer, duration))


def _record(trainer: DistillationTrainer, duration: Duration) -> Training:
    """Return how long the training took, and the teachers' share of its time, over all entries of the log."""
    shares = [float(entry["teacher_share"]) for entry in trainer.state.log_history if "teacher_share" in entry]
    record = Training(
        steps=trainer.state.global_step,
        seconds=duration.seconds,
        teacher_share=sum(shares) / len(shares) if shares else None,
    )
    say(f"distillation: {record.sentence}")
    return record


def _training_data(settings: DistillationSettings, data: TaskData, learner: Any) -> TaskData:
    """Return the data with the rows and the collator for training."""
    rows, collate = with_rows(data) if settings.cache else (data.train, data.collate)
    collate = settings.augment.over(collate) if settings.augment else collate
    return replace(data, train=rows, collate=with_float_inputs(collate, learner.dtype))


def _evaluation(
    settings: DistillationSettings,
    state: StageState,
    learner: PreTrainedModel,
    teachers: Sequence[TeacherSource],
    duration: Duration,
    scratch: Path,
    checkpoint: str | None,
) -> StudentEvaluation | None:
    """Return what evaluates the student during training; None if it is not evaluated.

    The best weights are kept in the folder of the state, which is on the disk of the result, or else in `scratch`.
    """
    data = replace(state.data, collate=with_float_inputs(state.data.collate, learner.dtype))
    sample = held_out(settings, data, learner, teachers, clock, checkpoint)
    if sample is None:
        return None
    times = EvaluationTimes(settings.evaluation_share, clock)
    kept = KeptWeights(state.checkpoints or scratch)
    return StudentEvaluation(sample, learner, kept, times, duration, settings.patience)


def _selected_(evaluation: StudentEvaluation | None, last_step: int) -> TrainingCurve | None:
    """Give the learner its best weights, and return the curve of its quality."""
    if evaluation is None:
        return None
    evaluation.restore_best_()
    curve = evaluation.curve(last_step)
    for warning in curve.warnings:
        warn(warning)
    return curve


def _trainer(
    settings: DistillationSettings,
    state: StageState,
    data: TaskData,
    learner: Any,
    objective: Objective,
    duration: Duration,
    scratch: str,
    evaluation: StudentEvaluation | None,
) -> DistillationTrainer:
    """Return the Trainer, which writes checkpoints into the folder of the state if the settings ask for them."""
    folder = _checkpoint_folder(settings, state)
    by_length = "input_ids" in data.train.column_names
    head_first = [HeadFirst(learner, settings.head_first, duration)] if settings.head_first else []
    trainer = LimitedTrainer(
        duration,
        settings.warmup,
        model=learner,
        args=training_arguments(
            settings, str(folder or scratch), len(data.train), by_length=by_length, keeps=folder is not None
        ),
        train_dataset=data.train,
        data_collator=data.collate,
        callbacks=[duration, Progress(duration), *([evaluation] if evaluation else []), MarkWhole(), *head_first],
        objective=objective,
    )
    if evaluation is not None:
        evaluation.attach(trainer)
    trainer.remove_callback(PrinterCallback)  # `Progress` reports instead
    return trainer


def _resumed_checkpoint(settings: DistillationSettings, state: StageState) -> str | None:
    """Return the last complete checkpoint of a training that is resumed; None if it begins."""
    folder = _checkpoint_folder(settings, state)
    return last_whole_checkpoint(folder) if state.resume and folder is not None else None


def _checkpoint_folder(settings: DistillationSettings, state: StageState) -> Path | None:
    """Return the folder of the state if checkpoints are written; else None."""
    return state.checkpoints if settings.checkpoint_every is not None else None


def _train(
    trainer: DistillationTrainer, duration: Duration, evaluation: StudentEvaluation | None, checkpoint: str | None
) -> None:
    """Train to the end, from a checkpoint if there is one."""
    if checkpoint is not None and evaluation is not None:
        evaluation.restore(Path(checkpoint))
    if checkpoint is not None and ended_at(checkpoint, duration):
        load_ended_(trainer, checkpoint)
    else:
        trainer.train(resume_from_checkpoint=checkpoint)


def training_arguments(
    settings: DistillationSettings, folder: str, rows: int, *, by_length: bool, keeps: bool
) -> TrainingArguments:
    """Return the arguments of the Trainer.

    Args:
        settings: of the distillation.
        folder: for checkpoints.
        rows: number of training rows.
        by_length: whether batches have rows of similar length.
        keeps: whether checkpoints are written.
    """
    size = min(settings.batch_size, rows)
    return TrainingArguments(
        output_dir=folder,
        max_steps=settings.most_steps or ENDLESS,
        per_device_train_batch_size=size,
        dataloader_drop_last=rows % size == 1,  # a batch norm has no variance over one row
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        bf16=settings.autocasts,
        train_sampling_strategy="group_by_length" if by_length else "random",
        save_strategy="steps" if keeps else "no",
        save_steps=settings.checkpoint_every or 500,
        save_total_limit=2,
        logging_strategy="no",  # `Duration` says when
        use_cpu=not torch.accelerator.is_available(),
        report_to=list(settings.report_to) or "none",
        log_level="error",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=settings.seed,
    )


def _reuse_head_(student: PreTrainedModel, teachers: Sequence[TeacherSource], data: TaskData) -> None:
    """Give the student the teacher's head behind a stitching layer; if that is impossible, `build` raises later."""
    live = [teacher.model for teacher in teachers if isinstance(teacher, LiveTeacher)]
    names = [label_head(model.config, type(model)) for model in (*live, student)]
    if len(live) == 1 and all(names):
        with evaluating(student):
            reuse_(live[0], student, StitchPoint(*names), data)  # type: ignore[arg-type]


class HeadFirst(TrainerCallback):
    """Trains only the head in the first `fraction` of the training, by dropping the gradients of the body."""

    def __init__(self, model: PreTrainedModel, fraction: float, duration: Duration) -> None:
        head = label_head(model.config, type(model))
        if head is None:
            raise UsageError(f"distil.head_first: {type(model).__name__} has no layer to labels. Leave it out.")
        head_parameters = {id(p) for p in model.get_submodule(head).parameters()}
        self.body = [p for p in model.parameters() if id(p) not in head_parameters]
        self.fraction = fraction
        self.duration = duration

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Drop the gradients of the body."""
        if self.duration.fraction(state.global_step) < self.fraction:
            for parameter in self.body:
                parameter.grad = None


class Progress(TrainerCallback):
    """Reports the progress of the training to the listeners of a run: steps, or seconds if only minutes limit it."""

    def __init__(self, duration: Duration) -> None:
        self.duration = duration

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report the beginning, which is not 0 in a resumed run."""
        self._report(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report the current step."""
        self._report(state.global_step)

    def _report(self, step: int) -> None:
        if self.duration.steps:
            advance("distillation", step, self.duration.steps)
        else:
            most = round(60 * (self.duration.minutes or 0))
            advance("distillation, seconds", min(round(self.duration.seconds), most), most)
