"""What the evaluation of a model yields."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class EvalResult:
    """What a task saw of each evaluation example: enough to score all of them or any sample of them.

    Attributes:
        columns: arrays with one entry (or row) per example.
        score: metrics from such columns.
        slices: name to which examples belong to it, [examples] of bool; what a report looks at for losses.
    """

    columns: dict[str, np.ndarray[Any, Any]]
    score: Callable[[dict[str, np.ndarray[Any, Any]]], dict[str, float]]
    slices: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of examples."""
        return len(next(iter(self.columns.values())))

    def scores(self, rows: np.ndarray[Any, Any] | None = None) -> dict[str, float]:
        """The metrics on all examples, or on `rows` (indices or a mask)."""
        return self.score(self.columns if rows is None else {k: v[rows] for k, v in self.columns.items()})


def thirds(values: np.ndarray[Any, Any], what: str) -> dict[str, np.ndarray[Any, Any]]:
    """Slices of examples by a number each has: the lowest, middle and highest third; none where all are equal."""
    low, high = np.quantile(values, [1 / 3, 2 / 3])
    parts = {f"lowest third of {what}": values <= low, f"highest third of {what}": values > high}
    parts[f"middle third of {what}"] = (values > low) & (values <= high)
    return {name: mask for name, mask in parts.items() if mask.any() and not mask.all()}
