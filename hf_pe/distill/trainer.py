"""The stock Trainer with one method replaced: the loss looks at a teacher too."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer

from hf_pe.distill.chunked import Head, chunked, states
from hf_pe.distill.layer_map import Pairs
from hf_pe.distill.losses import LOSSES, chunkable, per_token
from hf_pe.tasks import Task


class DistillationTrainer(Trainer):
    """A `Trainer` whose loss is a weighted sum of distillation losses.

    Args:
        teacher: run in evaluation mode, without gradients.
        task: gives the signals of both models.
        weights: loss name to weight; see `hf_pe.distill.losses.LOSSES`.
        temperature: of the logits.
        heads: the student's and the teacher's, where losses of the logits are to be taken in chunks.
        pairs: which hidden state learns from which; default evenly.
        projections: of the student's hidden states to the teacher's width, where it differs.
        kwargs: those of `Trainer`.
    """

    def __init__(
        self,
        *,
        teacher: PreTrainedModel,
        task: Task,
        weights: dict[str, float],
        temperature: float,
        heads: tuple[Head, Head] | None = None,
        pairs: Pairs | None = None,
        projections: Sequence[nn.Module] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.teacher = teacher.eval().to(self.args.device)
        self.task, self.weights, self.temperature = task, weights, temperature
        self.hidden = "hidden" in weights
        self.terms: dict[str, float] = {}
        self.heads = heads
        self.layers = {"pairs": pairs, "projections": projections}

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Weighted sum over the losses; the terms of the last batch are kept for the log."""
        if self.heads is not None and not return_outputs:
            return self._in_chunks(model, inputs, self.heads)
        student = self.task.signals(model, inputs, hidden=self.hidden) | self.layers
        with torch.no_grad(), self.accelerator.autocast():
            teacher = self.task.signals(self.teacher, inputs, hidden=self.hidden)
        terms = {name: LOSSES[name].compute(student, teacher, self.temperature) for name in self.weights}
        self.terms = {name: float(term.detach()) for name, term in terms.items()}
        loss = torch.stack([weight * terms[name] for name, weight in self.weights.items()]).sum()
        return (loss, student) if return_outputs else loss

    def _in_chunks(self, model: Any, inputs: Any, heads: tuple[Head, Head]) -> torch.Tensor:
        """The same without logits; hidden states have their losses beside."""
        mask, labels = self.task.predicted(inputs)  # type: ignore[attr-defined]
        student = states(model, inputs)
        with torch.no_grad(), self.accelerator.autocast():
            teacher = states(self.teacher, inputs)
        names = [name for name in self.weights if name in chunkable()]
        count = max(len(labels), 1)

        def terms(here: torch.Tensor, there: torch.Tensor, place: slice) -> torch.Tensor:
            return torch.stack([per_token(name, here, there, labels[place], self.temperature).sum() for name in names])

        weights = [self.weights[name] / count for name in names]
        loss, found = chunked(terms, weights, (student[-1][mask], heads[0]), (teacher[-1][mask], heads[1]))
        self.terms = {name: float(value) / count for name, value in zip(names, found, strict=True)}
        if self.hidden:
            term = LOSSES["hidden"].compute(
                {"hidden_states": student, "mask": torch.ones_like(mask)} | self.layers,
                {"hidden_states": teacher},
                self.temperature,
            )
            self.terms["hidden"] = float(term.detach())
            loss = loss + self.weights["hidden"] * term
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add each term to what the Trainer logs."""
        super().log({**logs, **{f"loss_{name}": value for name, value in self.terms.items()}}, start_time)
