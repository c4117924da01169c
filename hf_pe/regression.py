"""Ridge regression of a change of a linear layer's output on its inputs, from sums over tokens.

The sums (`Moments`) are kept apart in two folds, the even and the odd batches of the calibration data. The ridge is
chosen by cross-validation: what is fitted on one fold is tested on the other.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch

FOLDS = 2
"""Parts of the calibration data that are summed apart for cross-validation."""
PARTS = 6
"""Strips in which the upper triangle of a Gram matrix is computed, with 7/12 of the products of the full matrix."""
RIDGES = (1e1, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Ridges to choose from, relative to the mean diagonal of the inputs' Gram matrix."""
CHANGE = 0.5
"""`by_size` where the weights of a trained layer change: exponent of the per-input scaling of the ridge.

At 0 all inputs have the same penalty; then the few inputs with a huge variance (those of attention sinks) change hardly
at all. At 1 inputs are standardized; then inputs that are rarely active overfit. 0.5 lies between."""
LEAST = 1e-8
"""The smallest mean square that an input counts with, relative to the mean over all inputs."""
HELD_OUT = 5
"""`fit_rows` fits on all rows but one of this many, on which it measures the explained variance."""
DEFAULT_RIDGE = 1e-2
"""The ridge where there is only one fold, so that there can be no cross-validation."""


@dataclass(frozen=True)
class Moments:
    """Sums over tokens of the inputs x of a linear layer and of the changes y that its output should make.

    Attributes:
        xx: sum of x x^T. *Shape:* (n, n)
        xy: sum of x y^T. *Shape:* (n, m), with m = 0 where y is not known yet
        x: sum of x. *Shape:* (n,)
        y: sum of y. *Shape:* (m,)
        count: sum of the token weights: the number of tokens where there are none.
    """

    xx: torch.Tensor
    xy: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    count: float

    @classmethod
    def of(cls, x: torch.Tensor, y: torch.Tensor | None = None, weight: torch.Tensor | None = None) -> "Moments":
        """Return the moments of rows.

        Args:
            x: *Shape:* (tokens, n)
            y: *Shape:* (tokens, m)
            weight: by which each token is multiplied in the sums; default: 1. *Shape:* (tokens,)
        """
        folds = Folds()
        folds.add(0, x, y, weight)
        return folds.moments()[0]

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.xx + other.xx, self.xy + other.xy, self.x + other.x, self.y + other.y, self.count + other.count
        )

    def in_basis(self, basis: torch.Tensor) -> "Moments":
        """Return the moments of T x in place of x, where `basis` is T, [n, n]."""
        return Moments(basis @ self.xx @ basis.T, basis @ self.xy, basis @ self.x, self.y, self.count)

    def means(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return xx, xy, x and y, divided by the count, in float64."""
        return tuple(part.double() / self.count for part in (self.xx, self.xy, self.x, self.y))  # type: ignore[return-value]

    @property
    def gram(self) -> torch.Tensor:
        """Return the Gram matrix xx / count, [n, n]."""
        return self.xx / self.count


class Folds:
    """Sum up moments batch by batch, for each fold apart; of xx only the upper triangle, until it is asked for."""

    def __init__(self) -> None:
        self._sums: dict[int, Moments] = {}

    @torch.no_grad()
    def add(
        self, number: int, x: torch.Tensor, y: torch.Tensor | None = None, weight: torch.Tensor | None = None
    ) -> None:
        """Add the rows of batch `number`, which decides the fold; see `Moments.of`."""
        x = x.float()
        y = x.new_zeros(len(x), 0) if y is None else y.float()
        root = x.new_ones(len(x))
        if weight is not None:
            root = weight.float().sqrt()
            x, y = x * root[:, None], y * root[:, None]
        fold, (n, m) = number % FOLDS, (x.shape[1], y.shape[1])
        if fold not in self._sums:
            self._sums[fold] = Moments(x.new_zeros(n, n), x.new_zeros(n, m), x.new_zeros(n), x.new_zeros(m), 0.0)
        sums = self._sums[fold]
        for start, stop in _strips(n):
            sums.xx[start:stop, start:].addmm_(x[:, start:stop].T, x[:, start:])
        sums.xy.addmm_(x.T, y)
        sums.x.addmv_(x.T, root)
        sums.y.addmv_(y.T, root)
        self._sums[fold] = replace(sums, count=sums.count + float(root @ root))

    def moments(self) -> list[Moments]:
        """Return the moments of each fold that has rows; they are views that grow when more rows are added."""
        for sums in self._sums.values():
            for start, stop in _strips(len(sums.xx)):
                sums.xx[stop:, start:stop] = sums.xx[start:stop, stop:].T
        return list(self._sums.values())


def _strips(width: int) -> Iterator[tuple[int, int]]:
    """Yield the first row of each strip of a Gram matrix, and the row after its last."""
    step = max(-(-width // PARTS), 64)
    return ((start, min(start + step, width)) for start in range(0, width, step))


def pooled(folds: Iterable[Moments]) -> Moments:
    """Return the sum of the moments of all folds."""
    total, *rest = folds
    for fold in rest:
        total = total + fold
    return total


class Fit(NamedTuple):
    """The fitted change of a linear layer.

    Attributes:
        move: change of its weight, transposed. *Shape:* (inputs, outputs)
        shift: change of its bias; zero where it has none. *Shape:* (outputs,)
        ridge: the ridge that was chosen.
    """

    move: torch.Tensor
    shift: torch.Tensor
    ridge: float


def fit(folds: Sequence[Moments], *, bias: bool, by_size: float = 0.0) -> Fit:
    """Fit y by a ridge regression on x, with the ridge chosen by cross-validation over the folds.

        D = argmin  sum ||y - D^T x||^2 + r ||S D||^2  =  (X^T X + r S^2)^-1 X^T Y

    With a bias, x and y are centred, and the bias takes up the difference of the means (Hoerl and Kennard 1970). Ridges
    are tried from the largest on, as long as the error falls.

    Args:
        folds: the moments of each fold; folds without tokens are left out.
        bias: whether the layer has a bias that may change.
        by_size: p in S^2 = m^(1-p) diag(X^T X)^p, m the mean of that diagonal. At 0 all inputs have the same penalty;
            at 1 each has its own mean square (standardized inputs).
    """
    folds, solve = [fold for fold in folds if fold.count > 0], partial(_solve, bias=bias, by_size=by_size)
    ridge = DEFAULT_RIDGE
    if len(folds) > 1:
        trials = [(_normal(pooled([f for f in folds if f is not test]), bias), test.means()) for test in folds]
        least_error = float("inf")
        for candidate in RIDGES:
            error = sum(_error(test, *solve(train, candidate)) for train, test in trials)
            if error >= least_error:
                break
            least_error, ridge = error, candidate
    move, shift = solve(_normal(pooled(folds), bias), ridge)
    return Fit(move.float(), shift.float(), ridge)


def fit_rows(batches: Iterable[tuple[torch.Tensor, torch.Tensor]], *, bias: bool) -> tuple[Fit, float]:
    """Fit y by a ridge regression on x, batch after batch.

    Args:
        batches: pairs of x, *Shape:* (rows, n), and y, *Shape:* (rows, m).
        bias: whether a bias is fitted as well.

    Returns:
        The fit, and the fraction of the variance of y that it explains on held-out rows (one in `HELD_OUT`).
    """
    folds = Folds()
    held_out: list[tuple[torch.Tensor, torch.Tensor]] = []
    for number, (x, y) in enumerate(batches):
        is_held_out = torch.arange(len(x), device=x.device) % HELD_OUT == HELD_OUT - 1
        folds.add(number, x[~is_held_out], y[~is_held_out])
        held_out.append((x[is_held_out], y[is_held_out]))
    regression = fit(folds.moments(), bias=bias)
    x, y = (torch.cat(parts).float() for parts in zip(*held_out, strict=True))
    unexplained = (y - x @ regression.move - regression.shift).square().sum() / (y - y.mean(0)).square().sum()
    return regression, 1 - float(unexplained)


Means = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""The means of x x^T, x y^T, x and y, in float64."""


def _normal(sums: Moments, bias: bool) -> Means:
    """Return the means for the normal equations; with a bias the two products are centred."""
    gram, cross, x, y = sums.means()
    return (gram - x[:, None] * x, cross - x[:, None] * y, x, y) if bias else (gram, cross, x, y)


def _solve(normal: Means, ridge: float, bias: bool, by_size: float) -> tuple[torch.Tensor, torch.Tensor]:
    gram, cross, x, y = normal
    sizes, failed = gram.diagonal(), True
    level = sizes.mean().clamp_min(1e-12)
    penalty = level ** (1 - by_size) * sizes.clamp_min(LEAST * float(level)) ** by_size
    while failed:  # where inputs hardly vary, rounding of the sums in float32 can outweigh a weak ridge
        penalized = gram.clone()
        penalized.diagonal().add_(ridge * penalty)
        factor, info = torch.linalg.cholesky_ex(penalized)
        failed, ridge = bool(info), ridge * 10
    move = torch.cholesky_solve(cross, factor)
    return move, y - x @ move if bias else torch.zeros_like(y)


def _error(means: Means, move: torch.Tensor, shift: torch.Tensor) -> float:
    """Return the mean of ||y - D^T x - s||^2 over tokens, without the terms that do not depend on D and s."""
    xx, xy, x, y = means
    value = (move * (xx @ move)).sum() - 2 * (move * xy).sum() + 2 * shift @ (x @ move - y) + shift @ shift
    return float(value)
