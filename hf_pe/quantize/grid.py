"""Choose 4-bit codes and scales of a weight W so that its outputs W x change little: GPTQ.

A block of weights in a row shares a scale. A code is the index of one of 16 levels, and a weight is stored as level
times scale. Frantar et al. 2022, arXiv:2210.17323.
"""

import torch

from hf_pe.quantizers.base import Stored

SCALE_FRACTIONS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Candidate scales of a block, as fractions of its largest weight."""
DAMPING = 0.01
"""Fraction of the mean of the Gram matrix's diagonal that is added to the diagonal."""
COLUMNS = 128
"""Number of columns in a batch: errors are passed on one by one within it, and together to all columns after it."""


def nearest(values: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Return the code of the nearest level for each value.

    Args:
        values: Values in units of their scale, of any shape.
        levels: Levels of the grid, in any order.
            *Shape:* (16,)
    """
    order = levels.argsort()
    ranked = levels[order]
    return order[torch.bucketize(values.contiguous(), (ranked[1:] + ranked[:-1]) / 2)]


def refitted(
    weight: torch.Tensor, gram: torch.Tensor, levels: torch.Tensor, stored: Stored, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes and scales of a weight W that change its outputs W x little.

    The scales are chosen first, block by block, then the codes column by column. The rounding error of each column is
    compensated by the columns that have no code yet (algorithm 1 of GPTQ), columns with the largest inputs first.

    Args:
        weight: W in float32; its inputs are a multiple of `block`.
            *Shape:* (outputs, inputs)
        gram: Mean of x x^T over the inputs x.
            *Shape:* (inputs, inputs)
        levels: Levels of the grid.
            *Shape:* (16,)
        stored: Returns the values that scales of shape (outputs, blocks) have after storing; the codes are chosen for
            these.
        block: Number of weights in a row that share a scale.

    Returns:
        Codes, int64 of shape (outputs, inputs), and scales of shape (outputs, blocks) before storing.
    """
    scales = _best_scales(weight, gram.diagonal(), levels, block)
    widths = stored(scales).repeat_interleave(block, dim=1).clamp_min(1e-12)
    order = gram.diagonal().argsort(descending=True)
    factor = _factor(gram[order][:, order])
    codes = torch.empty_like(weight, dtype=torch.int64)
    remaining = weight[:, order].clone()
    for start in range(0, len(order), COLUMNS):
        columns = order[start : start + COLUMNS]
        stop = start + len(columns)
        errors = torch.empty(len(weight), len(columns), device=weight.device)
        for number, column in enumerate(columns.tolist()):
            at = start + number
            codes[:, column] = code = nearest(remaining[:, at] / widths[:, column], levels)
            errors[:, number] = (remaining[:, at] - levels[code] * widths[:, column]) / factor[at, at]
            remaining[:, at + 1 : stop] -= errors[:, number, None] * factor[at, at + 1 : stop]
        remaining[:, stop:] -= errors @ factor[start:stop, stop:]
    return codes, scales


def _best_scales(weight: torch.Tensor, inputs: torch.Tensor, levels: torch.Tensor, block: int) -> torch.Tensor:
    """Return, for each block, the candidate scale with the smallest rounding error weighted by its inputs.

    Args:
        weight: The weight.
            *Shape:* (outputs, inputs)
        inputs: Mean square of each input.
            *Shape:* (inputs,)
        levels: Levels of the grid.
        block: Number of weights in a row that share a scale.

    Returns:
        *Shape:* (outputs, blocks)
    """
    blocks = weight.reshape(len(weight), -1, block)
    largest = blocks.abs().amax(-1)
    best, scales = torch.full_like(largest, torch.inf), largest
    for fraction in SCALE_FRACTIONS:
        scale = (largest * fraction).clamp_min(1e-12)[..., None]
        error = (levels[nearest(blocks / scale, levels)] * scale - blocks).square()
        weighted = (error * inputs.reshape(-1, block)).sum(-1)
        scales = torch.where(weighted < best, largest * fraction, scales)
        best = torch.minimum(weighted, best)
    return scales


def _factor(gram: torch.Tensor) -> torch.Tensor:
    """Return the upper triangular U with U^T U = (G + damping)^-1: row i distributes the error of column i.

    The damping grows tenfold until the matrix is positive definite.
    """
    damping, failed = DAMPING * gram.diagonal().mean().clamp_min(1e-12).double(), True
    while failed:
        damped = gram.double()
        damped.diagonal().add_(damping)
        lower, info = torch.linalg.cholesky_ex(damped)
        failed, damping = bool(info), damping * 10
    upper: torch.Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return upper.float()
