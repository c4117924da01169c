"""Evaluates a student at intervals during its training, keeps its best weights, and stops a training in vain."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from hf_pe import progress
from hf_pe.distill.checkpoint import callback_state
from hf_pe.distill.duration import Duration
from hf_pe.distill.evaluation_times import EvaluationTimes
from hf_pe.distill.kept_weights import KeptWeights, Score
from hf_pe.plans import Frozen
from hf_pe.tasks import HeldOut
from hf_pe.training_curve import Evaluation, TrainingCurve


class EvaluationState(Frozen):
    """Holds what a checkpoint has of a `StudentEvaluation`, by the names of its attributes."""

    examples: int
    evaluations: tuple[Evaluation, ...]
    best: Score | None
    kept_step: int
    without_better: int
    ended: bool
    times: dict[str, float]


class StudentEvaluation(TrainerCallback, ExportableState):
    """Evaluates the student before the first step, after some steps and after the last one.

    Of all evaluated weights, the last ones are kept that are as good as the best (`Score.is_as_good_as`). Checkpoints
    have the state of this callback and the kept weights, so that a resumed training continues both.

    Args:
        held_out: training rows that are not trained on.
        learner: the model that is trained.
        kept: where its best weights are kept.
        times: decides after which steps it is evaluated.
        duration: of the training.
        patience: number of evaluations in a row without a better one after which training stops; None: it never does.
    """

    def __init__(
        self,
        held_out: HeldOut,
        learner: PreTrainedModel,
        kept: KeptWeights,
        times: EvaluationTimes,
        duration: Duration,
        patience: int | None = None,
    ) -> None:
        self.held_out = held_out
        self.learner = learner
        self.kept = kept if kept.fits(learner) else None
        self.times = times
        self.duration = duration
        self.patience = patience
        self.evaluations: list[Evaluation] = []
        self.best: Score | None = None
        self.kept_step = 0
        self.without_better = 0
        self.ended = False
        self._autocast: Callable[[], AbstractContextManager[object]] = nullcontext
        self._log: Callable[[dict[str, float]], None] = lambda logs: None
        if self.kept is None:
            progress.say("distillation: the disk has no space for the best weights; the last ones will be returned")

    def attach(self, trainer: Trainer) -> None:
        """Compute as the Trainer does and log to its integrations."""
        self._autocast, self._log = trainer.accelerator.autocast, trainer.log

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Evaluate the student before training; a resumed training has the evaluation from before."""
        self.times.begin()
        if not self.evaluations:
            self._evaluate(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Evaluate the student if it is time to, and stop the training if it has been in vain for long."""
        if control.should_training_stop:
            self._end(state)
        elif self.times.is_due(self.duration.fraction(state.global_step)):
            self._evaluate(state)
            if self.patience is not None and self.without_better >= self.patience:
                control.should_training_stop = self.ended = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Add the kept weights to the checkpoint."""
        if self.kept is not None:
            self.kept.link(Path(str(args.output_dir), f"checkpoint-{state.global_step}"))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Evaluate the student if another callback has stopped the training."""
        self._end(state)

    def _end(self, state: TrainerState) -> None:
        """Evaluate the student after the last step, unless that would take more than the share of the time."""
        if not self.ended and self.evaluations[-1].step < state.global_step and self.times.allows_last():
            self._evaluate(state, is_last=True)
        self.ended = self.evaluations[-1].step == state.global_step

    def _evaluate(self, state: TrainerState, *, is_last: bool = False) -> None:
        """Evaluate the student, and keep its weights if they are as good as the best."""
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()  # what the training has started is no part of the evaluation
        task, step = self.held_out.data.task, state.global_step
        with self.times.evaluation():
            devices = [self.learner.device] if self.learner.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices), self._autocast():
                result = task.evaluate(self.learner, self.held_out.data)
            score = Score.of(result, task.metric, higher_is_better=task.higher_is_better)
            is_better = self.best is None or score.exceeds(self.best)
            if self.best is None or is_better or score.is_as_good_as(self.best):
                self.kept_step = step
                if self.kept is not None and not is_last:
                    self.kept.save(self.learner)
        self.best = score if is_better else self.best
        self.without_better = 0 if is_better else self.without_better + 1
        value = score.value if task.higher_is_better else -score.value
        self.evaluations.append(
            Evaluation(step=step, seconds=self.times.training_seconds, value=value if value == value else None)
        )
        self._log({f"eval_{task.metric}": value})
        progress.say(f"distillation: {task.metric} {value:.4g} after {step} steps")

    def restore_best_(self) -> None:
        """Give the learner the kept weights, unless they are its own."""
        if self.kept is not None and self.evaluations[-1].step != self.kept_step and self.ended:
            self.kept.load_(self.learner)

    def curve(self, last_step: int) -> TrainingCurve:
        """Return the curve for the report.

        Args:
            last_step: of the training.
        """
        selected = self.kept is not None and self.ended
        return TrainingCurve(
            metric=self.held_out.data.task.metric,
            rows=len(self.held_out.rows),
            evaluations=tuple(self.evaluations),
            kept_step=self.kept_step if selected else None,
            last_step=last_step,
            evaluation_seconds=self.times.evaluation_seconds,
        )

    def state(self) -> dict[str, dict[str, object]]:
        """Return what a checkpoint has to keep; the Trainer writes it."""
        state = EvaluationState(
            examples=self.held_out.examples,
            evaluations=tuple(self.evaluations),
            best=self.best,
            kept_step=self.kept_step,
            without_better=self.without_better,
            ended=self.ended,
            times=self.times.state(),
        )
        return {"args": {}, "attributes": state.model_dump()}

    def restore(self, checkpoint: Path) -> None:
        """Continue from a checkpoint: with its evaluations, its times and its kept weights."""
        state = _stored(str(checkpoint))
        self.evaluations, self.best = list(state.evaluations), state.best
        self.kept_step, self.without_better, self.ended = state.kept_step, state.without_better, state.ended
        self.times.restore(state.times)
        if self.kept is not None:
            self.kept.take_from(checkpoint)


def stored_examples(checkpoint: str) -> int:
    """Return how many examples a checkpointed training has held out; 0 if it was not evaluated."""
    return 0 if callback_state(checkpoint, StudentEvaluation.__name__) is None else _stored(checkpoint).examples


def _stored(checkpoint: str) -> EvaluationState:
    return EvaluationState.model_validate(callback_state(checkpoint, StudentEvaluation.__name__))
