"""Computes 95 % confidence intervals of figures over rows by the bootstrap."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.intp]
"""Indices of rows."""


def intervals(
    figures: Callable[..., dict[str, float]], samples: Sequence[Rows], resamples: int, generator: np.random.Generator
) -> dict[str, tuple[float, float]]:
    """Return the percentile interval of each figure (Efron & Tibshirani 1993, chapter 13).

    Rows are drawn with replacement. Where a figure compares two models, both have the same rows (paired); several
    samples, such as two texts, are drawn independently of each other.

    Args:
        figures: Returns figures by name from one array of rows for each sample.
        samples: Rows to draw from.
        resamples: Number of draws.
        generator: Draws the rows.

    Returns:
        Lower and upper end of the interval by the name of the figure.
    """
    draws: dict[str, list[float]] = {}
    for _ in range(resamples):
        for name, value in figures(*(generator.choice(rows, len(rows)) for rows in samples)).items():
            draws.setdefault(name, []).append(value)
    return {name: (float(np.nanquantile(v, 0.025)), float(np.nanquantile(v, 0.975))) for name, v in draws.items()}
