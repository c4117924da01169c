"""Collects what a distillation adds to the log of a Trainer: losses, agreement, speed and the teachers' share."""

import time
from collections.abc import Callable

import torch

from hf_pe.distill.objective import ObjectiveValue
from hf_pe.distill.student_outputs import AGREEMENT
from hf_pe.tasks import Batch


class TermLog:
    """Collects the terms of all batches since the last entry of the log, without waiting for the device."""

    def __init__(self) -> None:
        self._terms: dict[str, dict[int, torch.Tensor]] = {}
        self._tokens: list[torch.Tensor] = []
        self._teacher_seconds = 0.0
        self._since = time.perf_counter()

    def __bool__(self) -> bool:
        return bool(self._terms)

    def begins_with(self, step: int) -> bool:
        """Return whether an optimizer step is the first one since the last entry."""
        by_step = next(iter(self._terms.values()), {step: None})
        return next(iter(by_step)) == step

    def add(self, step: int, value: ObjectiveValue, batch: Batch) -> None:
        """Add one batch: the terms of all batches of an optimizer step are summed, and tokens are counted."""
        for name, term in value.terms.items():
            by_step = self._terms.setdefault(name, {})
            by_step[step] = by_step.get(step, 0) + term.float()
        self._teacher_seconds += value.teacher_seconds
        first = next(iter(batch.values()))
        mask = batch.get("attention_mask", batch.get("input_ids"))
        count = torch.tensor(len(first) if mask is None else mask.numel(), device=first.device)
        self._tokens.append(mask.sum() if mask is not None and "attention_mask" in batch else count)

    def summary(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Return the mean of each term over steps and processes, the tokens per second of all, and the teachers' share.

        Args:
            gather: collects a tensor from all processes, as accelerate's `gather` does.
        """
        device = self._tokens[0].device
        entry = {}
        for name, values in sorted(self._terms.items()):
            mean = float(gather(torch.stack(list(values.values())).mean().to(device)).mean())
            entry["teacher_agreement" if name == AGREEMENT else f"loss_{name}"] = mean
        tokens = float(gather(torch.stack(self._tokens).sum().float()).sum())
        seconds = max(time.perf_counter() - self._since, 1e-9)
        entry["tokens_per_second"] = tokens / seconds
        if self._teacher_seconds:
            entry["teacher_share"] = float(gather(torch.tensor(self._teacher_seconds / seconds, device=device)).mean())
        return entry
