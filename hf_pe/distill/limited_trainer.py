"""Trains a student for a number of steps or minutes."""

from typing import Any

from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from hf_pe.distill.duration import Duration, learning_rate_factor
from hf_pe.distill.trainer import DistillationTrainer


class LimitedTrainer(DistillationTrainer):
    """Trains for a `Duration`, on whose fraction the learning rate and all schedules depend.

    Args:
        duration: of the training; one of the callbacks.
        warmup: fraction of the training in which the learning rate rises.
        arguments: of `DistillationTrainer`.
    """

    def __init__(self, duration: Duration, warmup: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.duration = duration
        self.warmup = warmup

    @property
    def fraction_done(self) -> float:
        """The fraction of the training that is done, from 0 to 1."""
        return self.duration.fraction(self.state.global_step)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LRScheduler:
        """Return the scheduler of the learning rate."""
        if self.lr_scheduler is None:
            used_optimizer: Any = optimizer or self.optimizer
            self.lr_scheduler = LambdaLR(used_optimizer, self._learning_rate_factor)
        return self.lr_scheduler

    def _learning_rate_factor(self, step: int) -> float:
        return learning_rate_factor(self.duration.fraction(step), self.warmup)
