"""The stock Trainer with one method replaced: the loss looks at a teacher too."""

from typing import Any

import torch
from transformers import PreTrainedModel, Trainer

from hf_pe.distill.losses import LOSSES
from hf_pe.tasks import Task


class DistillationTrainer(Trainer):
    """A `Trainer` whose loss is a weighted sum of distillation losses.

    Args:
        teacher: run in evaluation mode, without gradients.
        task: gives the signals of both models.
        weights: loss name to weight; see `hf_pe.distill.losses.LOSSES`.
        temperature: of the logits.
        kwargs: those of `Trainer`.
    """

    def __init__(
        self,
        *,
        teacher: PreTrainedModel,
        task: Task,
        weights: dict[str, float],
        temperature: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.teacher = teacher.eval().to(self.args.device)
        self.task, self.weights, self.temperature = task, weights, temperature
        self.hidden = "hidden" in weights
        self.terms: dict[str, float] = {}

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Weighted sum over the losses; the terms of the last batch are kept for the log."""
        student = self.task.signals(model, inputs, hidden=self.hidden)
        with torch.no_grad(), self.accelerator.autocast():
            teacher = self.task.signals(self.teacher, inputs, hidden=self.hidden)
        terms = {name: LOSSES[name].compute(student, teacher, self.temperature) for name in self.weights}
        self.terms = {name: float(term.detach()) for name, term in terms.items()}
        loss = torch.stack([weight * terms[name] for name, weight in self.weights.items()]).sum()
        return (loss, student) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add each term to what the Trainer logs."""
        super().log({**logs, **{f"loss_{name}": value for name, value in self.terms.items()}}, start_time)
