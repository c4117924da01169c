"""Weights and temperatures that change as training goes on."""

import math
from typing import Literal

from pydantic import Field

from hf_pe.plans import Frozen


class Schedule(Frozen):
    """From `start` to `end` over the training steps."""

    start: float = Field(ge=0)
    end: float = Field(ge=0)
    shape: Literal["linear", "cosine"] = "linear"

    def at(self, progress: float) -> float:
        """Its value once `progress`, 0 to 1, of the steps are done."""
        part = min(max(progress, 0.0), 1.0)
        if self.shape == "cosine":
            part = (1 - math.cos(math.pi * part)) / 2
        return self.start + (self.end - self.start) * part


Scheduled = float | Schedule
"""A number, or one that changes."""


def at(value: Scheduled, progress: float) -> float:
    """What `value` is once `progress`, 0 to 1, of the steps are done."""
    return value.at(progress) if isinstance(value, Schedule) else value
