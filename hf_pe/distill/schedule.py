"""Defines weights and temperatures that change during training."""

import math
from typing import Literal

from pydantic import Field

from hf_pe.settings import Settings


class Schedule(Settings):
    """Changes a value from `start` to `end` over the training steps."""

    start: float = Field(ge=0)
    end: float = Field(ge=0)
    shape: Literal["linear", "cosine"] = "linear"

    def at(self, progress: float) -> float:
        """Return the value after the fraction `progress` of the steps."""
        fraction = min(max(progress, 0.0), 1.0)
        if self.shape == "cosine":
            fraction = (1 - math.cos(math.pi * fraction)) / 2
        return self.start + (self.end - self.start) * fraction


Scheduled = float | Schedule
"""A number, or a number that changes during training."""


def at(value: Scheduled, progress: float) -> float:
    """Return `value` after the fraction `progress` of the steps."""
    return value.at(progress) if isinstance(value, Schedule) else value
