"""Ridge regression from sums over tokens, the ridge chosen on what it had not seen."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch

FOLDS = 2
"""Parts of the calibration data that are summed apart: what is fitted on one is tried on the other."""
PARTS = 6
"""Strips in which a Gram matrix is made: 7/12 of the products of the whole."""
RIDGES = (1e1, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Tried from the strongest on, relative to the mean diagonal of the inputs' Gram matrix."""
CHANGE = 0.5
"""`by_size` of a change to a map: at 0 the few inputs that make a huge token (the first of a text) hardly change with
what reaches them, at 1 those that hardly ever speak change too freely."""
LEAST = 1e-8
"""No input counts as smaller than this, relative to the mean of all mean squares."""
UNSEEN = 5
"""One row in so many is not fitted on where it is asked how much is explained."""
UNTRIED = 1e-2
"""Where there is only one fold, so that nothing can be tried."""


@dataclass(frozen=True)
class Moments:
    """Sums over tokens of the inputs x [n] of one linear map, and of what its output should change by, y [m].

    Attributes:
        xx: sum of x x^T, [n, n].
        xy: sum of x y^T, [n, m]; zero wide where nothing is asked for yet.
        x, y: sums of x [n] and y [m].
        count: of tokens.
    """

    xx: torch.Tensor
    xy: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    count: float

    @classmethod
    def of(cls, x: torch.Tensor, y: torch.Tensor | None = None, weight: torch.Tensor | None = None) -> "Moments":
        """From rows [tokens, n] and [tokens, m], each token counted `weight` [tokens] times."""
        folds = Folds()
        folds.add(0, x, y, weight)
        return folds.moments()[0]

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.xx + other.xx, self.xy + other.xy, self.x + other.x, self.y + other.y, self.count + other.count
        )

    def in_basis(self, turn: torch.Tensor) -> "Moments":
        """Of T x in place of x; `turn` is T, [n, n]."""
        return Moments(turn @ self.xx @ turn.T, turn @ self.xy, turn @ self.x, self.y, self.count)

    def means(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """xx, xy, x and y over the count, in float64."""
        return tuple(part.double() / self.count for part in (self.xx, self.xy, self.x, self.y))  # type: ignore[return-value]

    @property
    def gram(self) -> torch.Tensor:
        """X^T X / n, [n, n]."""
        return self.xx / self.count


class Folds:
    """Moments as batches come in, one for each fold: summed in place, above the diagonal alone."""

    def __init__(self) -> None:
        self._sums: dict[int, Moments] = {}

    @torch.no_grad()
    def add(
        self, number: int, x: torch.Tensor, y: torch.Tensor | None = None, weight: torch.Tensor | None = None
    ) -> None:
        """Count the rows of batch `number`; see `Moments.of`."""
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
        """Those of each fold that a batch came to; they go on growing where more is added."""
        for sums in self._sums.values():
            for start, stop in _strips(len(sums.xx)):
                sums.xx[stop:, start:stop] = sums.xx[start:stop, stop:].T
        return list(self._sums.values())


def _strips(width: int) -> Iterator[tuple[int, int]]:
    """First row and the one behind the last of the strips of a Gram matrix."""
    step = max(-(-width // PARTS), 64)
    return ((start, min(start + step, width)) for start in range(0, width, step))


def pooled(folds: Iterable[Moments]) -> Moments:
    """The moments over all folds."""
    first, *others = folds
    for other in others:
        first = first + other
    return first


class Fit(NamedTuple):
    """How a linear map should change.

    Attributes:
        move: [inputs, outputs].
        shift: of its bias, [outputs]; zero where it has none.
        ridge: the one that did best on what it had not seen.
    """

    move: torch.Tensor
    shift: torch.Tensor
    ridge: float


def fit(folds: Sequence[Moments], *, bias: bool, by_size: float = 0.0) -> Fit:
    """Ridge regression of y on x, the ridge chosen by cross-validation over the folds.

    D = argmin sum ||y - D^T x||^2 + r ||S D||^2 = (X^T X + r S^2)^-1 X^T Y; with a bias both are centred and it takes
    up the difference of the means (Hoerl and Kennard 1970). The larger ridge wins where the error no longer falls.

    Args:
        folds: the moments; see `Moments`. One that no token reached says nothing and is left out.
        bias: whether the map has one that may move.
        by_size: p in S^2 = m^(1-p) diag(X^T X)^p, m the mean of that diagonal. At 0 all inputs are held back alike; at
            1 each by its own mean square (standardized inputs).
    """
    folds, solve = [fold for fold in folds if fold.count > 0], partial(_solve, bias=bias, by_size=by_size)
    ridge = UNTRIED
    if len(folds) > 1:
        trials = [(_normal(pooled([f for f in folds if f is not unseen]), bias), unseen.means()) for unseen in folds]
        best = float("inf")
        for candidate in RIDGES:
            error = sum(_error(unseen, *solve(seen, candidate)) for seen, unseen in trials)
            if error >= best:
                break
            best, ridge = error, candidate
    move, shift = solve(_normal(pooled(folds), bias), ridge)
    return Fit(move.float(), shift.float(), ridge)


def fit_rows(batches: Iterable[tuple[torch.Tensor, torch.Tensor]], *, bias: bool) -> tuple[Fit, float]:
    """Ridge regression of y [places, m] on x [places, n], batch after batch.

    Returns:
        The fit, and the share of the variance of y that it explains on rows it had not seen (one in `UNSEEN`).
    """
    folds = Folds()
    held: list[tuple[torch.Tensor, torch.Tensor]] = []
    for number, (x, y) in enumerate(batches):
        unseen = torch.arange(len(x), device=x.device) % UNSEEN == UNSEEN - 1
        folds.add(number, x[~unseen], y[~unseen])
        held.append((x[unseen], y[unseen]))
    how = fit(folds.moments(), bias=bias)
    x, y = (torch.cat(parts).float() for parts in zip(*held, strict=True))
    left = (y - x @ how.move - how.shift).square().sum() / (y - y.mean(0)).square().sum()
    return how, 1 - float(left)


Means = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Of x x^T, x y^T, x and y, in float64."""


def _normal(sums: Moments, bias: bool) -> Means:
    """The normal equations: with a bias the two products are centred."""
    gram, cross, x, y = sums.means()
    return (gram - x[:, None] * x, cross - x[:, None] * y, x, y) if bias else (gram, cross, x, y)


def _solve(normal: Means, ridge: float, bias: bool, by_size: float) -> tuple[torch.Tensor, torch.Tensor]:
    gram, cross, x, y = normal
    sizes, failed = gram.diagonal(), True
    level = sizes.mean().clamp_min(1e-12)
    held = level ** (1 - by_size) * sizes.clamp_min(LEAST * float(level)) ** by_size
    while failed:  # where inputs hardly vary, rounding of the sums in float32 can outweigh a weak ridge
        raised = gram.clone()
        raised.diagonal().add_(ridge * held)
        factor, info = torch.linalg.cholesky_ex(raised)
        failed, ridge = bool(info), ridge * 10
    move = torch.cholesky_solve(cross, factor)
    return move, y - x @ move if bias else torch.zeros_like(y)


def _error(means: Means, move: torch.Tensor, shift: torch.Tensor) -> float:
    """Mean of ||y - D^T x - s||^2 over tokens, less what does not depend on D and s."""
    xx, xy, x, y = means
    value = (move * (xx @ move)).sum() - 2 * (move * xy).sum() + 2 * shift @ (x @ move - y) + shift @ shift
    return float(value)
