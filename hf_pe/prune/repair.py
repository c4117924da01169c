"""Repairs what is left: the maps that read the removed units learn to do without them, in closed form."""

import torch

from hf_pe.prune.statistics import Moments


def least_squares(
    weight: torch.Tensor, bias: torch.Tensor | None, moments: Moments, kept: torch.Tensor, ridge: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Best weights on the kept inputs to give the layer's own output.

    Minimises E||W x - W' x_S||^2 + ridge * mean(diag G_SS) * ||W' - W_S||^2, where G is the Gram matrix of the inputs:
    W' = W_S + W_R G_RS (G_SS + r I)^-1 (ridge regression towards the weights as they are). With a bias the moments are
    centred and the bias takes up the difference of the means.

    Args:
        weight: [outputs, inputs].
        bias: [outputs] or None.
        moments: of the inputs.
        kept: kept input indices, rising.
        ridge: relative to the mean diagonal of G_SS.

    Returns:
        weight [outputs, kept] and bias, in float32.
    """
    gram, mean = moments.gram.double(), moments.mean.double()
    if bias is not None:
        gram = gram - mean[:, None] * mean
    removed = torch.ones(len(gram), dtype=torch.bool)
    removed[kept] = False
    old = weight.double()
    inner = gram[kept][:, kept]
    inner += ridge * inner.diagonal().mean().clamp_min(1e-12) * torch.eye(len(kept), dtype=inner.dtype)
    missing = old[:, removed] @ gram[removed][:, kept]
    new = old[:, kept] + torch.linalg.solve(inner, missing, left=False)
    if bias is None:
        return new.float(), None
    return new.float(), (bias.double() + old @ mean - new @ mean[kept]).float()
