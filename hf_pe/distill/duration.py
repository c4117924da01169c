"""Ends a training after so many optimizer steps or minutes, and tells which fraction of it is done.

Everything that changes during a training depends on that fraction: the learning rate, schedules of weights and of the
temperature, and how often something is logged. A training that is limited by minutes therefore warms up and decays
as one that is limited by steps, however fast the machine is.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import broadcast
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy

ENDLESS = 2**31 - 1
"""Number of steps that the Trainer is given if only minutes limit the training."""
LOG_ENTRIES = 50
"""Number of entries in the log of a training, if it has as many steps."""


class Duration(TrainerCallback, ExportableState):
    """Limits a training by steps, minutes or both; whichever is reached first ends it.

    Time counts from the first step, with evaluations and checkpoints, and goes on where a resumed run stopped. All
    processes go by the clock of the first one.

    Args:
        steps: optimizer steps; None for no limit.
        minutes: of training; None for no limit.
        clock: returns seconds.

    Example:
        >>> duration = Duration(steps=200, minutes=None)
        >>> duration.fraction(50)
        0.25
    """

    def __init__(self, steps: int | None, minutes: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.steps = steps
        self.minutes = minutes
        self.clock = clock
        self.seconds = 0.0
        self._earlier_seconds = 0.0
        self._started = 0.0
        self._logged = 0

    def fraction(self, step: int) -> float:
        """Return the fraction of the training that is done after `step` steps, from 0 to 1."""
        by_steps = step / self.steps if self.steps else 0.0
        by_time = self.seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(max(by_steps, by_time), 1.0)

    def state(self) -> dict[str, dict[str, object]]:
        """Return what the Trainer stores in a checkpoint."""
        return {"args": {"steps": self.steps, "minutes": self.minutes}, "attributes": {"seconds": self.seconds}}

    def ended(self, state: TrainerState) -> bool:
        """Return whether a training that was stored with `state` has ended."""
        self._restore(state)
        return self.fraction(state.global_step) == 1.0

    def _restore(self, state: TrainerState) -> None:
        """Take over the seconds of a stored training; 0 for one that begins."""
        stored_states: Any = state.stateful_callbacks or {}
        attributes = stored_states.get(type(self).__name__, {}).get("attributes", {})
        self._earlier_seconds = self.seconds = float(attributes.get("seconds", 0.0))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Start the clock; a resumed run continues with the seconds of its checkpoint."""
        self._restore(state)
        self._started = self.clock()
        self._logged = math.floor(LOG_ENTRIES * self.fraction(state.global_step))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Read the clock, and end the training if its time is over."""
        self.seconds = self._earlier_seconds + self.clock() - self._started
        if self.minutes:
            self.seconds = float(broadcast(torch.tensor(self.seconds, device=args.device)))
        fraction = self.fraction(state.global_step)
        entry = math.floor(LOG_ENTRIES * fraction)
        if entry > self._logged or fraction == 1.0:
            control.should_log, self._logged = True, entry
        if fraction == 1.0:
            control.should_training_stop = True
            control.should_save = args.save_strategy == SaveStrategy.STEPS


def learning_rate_factor(fraction: float, warmup: float) -> float:
    """Return the learning rate over its peak: it rises linearly in the warm-up, then falls along a cosine to 0.

    Args:
        fraction: of the training that is done.
        warmup: fraction of the training in which the rate rises.

    Example:
        >>> [round(learning_rate_factor(fraction, warmup=0.2), 2) for fraction in (0.0, 0.1, 0.2, 0.6, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if fraction < warmup:
        return fraction / warmup
    return 0.5 * (1 + math.cos(math.pi * (fraction - warmup) / (1 - warmup)))
