"""Defines the curve of a student's quality during its training, as a report states it and a card draws it."""

from pydantic import Field

from hf_pe.plans import Frozen


class Evaluation(Frozen):
    """The metric of a student after a number of optimizer steps."""

    step: int
    seconds: float = Field(description="of training before it, without the evaluations")
    value: float | None = Field(description="of the metric; None if it is not a number")


class TrainingCurve(Frozen):
    """The task's metric of a student during training, on training rows that were held out of it."""

    metric: str
    rows: int = Field(description="held out; the training never reads them")
    evaluations: tuple[Evaluation, ...] = Field(description="the first one is before the first step")
    kept_step: int | None = Field(description="step whose weights are the result; None if evaluations did not select")
    last_step: int
    evaluation_seconds: float = Field(description="of all evaluations and of keeping weights")

    @property
    def sentence(self) -> str:
        """Return which weights are the result and why, for a card."""
        if self.kept_step is None:
            return f"the weights after the last step ({self.last_step}) are kept; nothing was selected"
        kept = next(each for each in self.evaluations if each.step == self.kept_step)
        return (
            f"the weights after step {kept.step} of {self.last_step} are kept: {self.metric} {_shown(kept.value)} on "
            f"{self.rows} held-out training rows (before training {_shown(self.evaluations[0].value)}, after the last "
            f"step {_shown(self.evaluations[-1].value)})"
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return a warning if training made the student worse, so that it is returned as it was before."""
        if self.kept_step != 0:
            return ()
        return (
            f"Distillation: after no evaluation was {self.metric} on {self.rows} held-out training rows as good as "
            f"before training ({_shown(self.evaluations[0].value)}; after the last step "
            f"{_shown(self.evaluations[-1].value)}). The student is returned as it was before training. Lower "
            "learning_rate, or train on more or other data.",
        )


def _shown(value: float | None) -> str:
    return "no number" if value is None else f"{value:.4g}"
