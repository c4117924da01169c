"""4-bit codes and scales for a weight, chosen by what it is multiplied with rather than weight by weight."""

import torch

from hf_pe.quantizers.base import Stored

SHRUNK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Scales that are tried for a block, of its largest weight."""
DAMPING = 0.01
"""Added to the diagonal of the Gram matrix, of its mean."""
COLUMNS = 128
"""Columns whose errors are handed on one by one; to those behind them, together."""


def nearest(values: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Of each value the number of the nearest level.

    Args:
        values: of any shape, in units of the scale.
        levels: in any order, [16].
    """
    order = levels.argsort()
    ranked = levels[order]
    return order[torch.bucketize(values.contiguous(), (ranked[1:] + ranked[:-1]) / 2)]


def refitted(
    weight: torch.Tensor, gram: torch.Tensor, levels: torch.Tensor, stored: Stored, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes and scales that stand for a weight W with little change of its outputs W x.

    Scales first, block by block, then codes column by column: the error of each column is taken up by those that have
    no code yet (Frantar et al. 2022, GPTQ, arXiv:2210.17323, algorithm 1), columns with the largest inputs first.

    Args:
        weight: W, float32, [outputs, inputs], a whole number of blocks wide.
        gram: mean of x x^T, [inputs, inputs].
        levels: of the grid, [16].
        stored: what scales [outputs, blocks] become when they are stored: codes are chosen for those.
        block: weights of a row that share a scale.

    Returns:
        Codes, int64 [outputs, inputs], and scales [outputs, blocks] as they go into `stored`.
    """
    scales = _least_error(weight, gram.diagonal(), levels, block)
    widths = stored(scales).repeat_interleave(block, dim=1).clamp_min(1e-12)
    order = gram.diagonal().argsort(descending=True)
    share = _factor(gram[order][:, order])
    codes = torch.empty_like(weight, dtype=torch.int64)
    left = weight[:, order].clone()
    for start in range(0, len(order), COLUMNS):
        columns = order[start : start + COLUMNS]
        stop = start + len(columns)
        errors = torch.empty(len(weight), len(columns), device=weight.device)
        for number, column in enumerate(columns.tolist()):
            at = start + number
            codes[:, column] = code = nearest(left[:, at] / widths[:, column], levels)
            errors[:, number] = (left[:, at] - levels[code] * widths[:, column]) / share[at, at]
            left[:, at + 1 : stop] -= errors[:, number, None] * share[at, at + 1 : stop]
        left[:, stop:] -= errors @ share[start:stop, stop:]
    return codes, scales


def _least_error(weight: torch.Tensor, inputs: torch.Tensor, levels: torch.Tensor, block: int) -> torch.Tensor:
    """Per block the scale, among those tried, whose rounding errors weigh least; [outputs, blocks].

    Args:
        weight: [outputs, inputs].
        inputs: mean square of each, [inputs].
        levels: of the grid.
        block: weights of a row that share a scale.
    """
    blocks = weight.reshape(len(weight), -1, block)
    largest = blocks.abs().amax(-1)
    best, scales = torch.full_like(largest, torch.inf), largest
    for share in SHRUNK:
        scale = (largest * share).clamp_min(1e-12)[..., None]
        error = (levels[nearest(blocks / scale, levels)] * scale - blocks).square()
        weighted = (error * inputs.reshape(-1, block)).sum(-1)
        scales = torch.where(weighted < best, largest * share, scales)
        best = torch.minimum(weighted, best)
    return scales


def _factor(gram: torch.Tensor) -> torch.Tensor:
    """U with U^T U = (G + damping)^-1, upper triangular: row i says how column i's error is shared out."""
    damping, failed = DAMPING * gram.diagonal().mean().clamp_min(1e-12).double(), True
    while failed:
        raised = gram.double()
        raised.diagonal().add_(damping)
        lower, info = torch.linalg.cholesky_ex(raised)
        failed, damping = bool(info), damping * 10
    upper: torch.Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return upper.float()
