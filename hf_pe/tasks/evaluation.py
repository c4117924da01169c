"""Holds the result of evaluating a model, example by example."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class EvalResult:
    """Holds the values that a task computed for each evaluation example, and the function that makes metrics of them.

    Metrics can so be computed for all examples, for a slice of them, or for a bootstrap sample, without the model.

    Attributes:
        columns: arrays with one entry (or row) per example.
        score: returns the metrics by name from such columns.
        slices: by name, which examples belong to the slice, [examples] of bool. A report compares models on each.
    """

    columns: dict[str, np.ndarray[Any, Any]]
    score: Callable[[dict[str, np.ndarray[Any, Any]]], dict[str, float]]
    slices: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """The number of examples."""
        return len(next(iter(self.columns.values())))

    def scores(self, rows: np.ndarray[Any, Any] | None = None) -> dict[str, float]:
        """Return the metrics on all examples, or on `rows` (indices or a mask)."""
        return self.score(self.columns if rows is None else {k: v[rows] for k, v in self.columns.items()})


def thirds(values: np.ndarray[Any, Any], what: str) -> dict[str, np.ndarray[Any, Any]]:
    """Return slices of the examples with the lowest, middle and highest third of `values`.

    Thirds that are empty or contain all examples are left out.

    Args:
        values: one number per example.
        what: names the numbers, such as "length".
    """
    low, high = np.quantile(values, [1 / 3, 2 / 3])
    parts = {f"lowest third of {what}": values <= low, f"highest third of {what}": values > high}
    parts[f"middle third of {what}"] = (values > low) & (values <= high)
    return {name: mask for name, mask in parts.items() if mask.any() and not mask.all()}
