"""A norm at work on one batch, and its inverse with the mean and the size that its input had."""

from typing import NamedTuple

import torch
from torch import nn

TOLERANCE = 2e-2
"""How far, over the root mean square, a tensor may be from a norm's output to count as that."""


class ObservedNorm(NamedTuple):
    """A norm that gave (input - mean) / size * gain + bias.

    Attributes:
        gain, bias: *Shape:* (width,)
        mean, size: of each token. *Shape:* (..., 1)
    """

    gain: torch.Tensor
    bias: torch.Tensor
    mean: torch.Tensor
    size: torch.Tensor

    @classmethod
    def of(cls, module: nn.Module, inputs: torch.Tensor, outputs: torch.Tensor) -> "ObservedNorm | None":
        """Return what a module did, from its input and output; None where that is no such norm (over places, say)."""
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if weight is None or weight.shape != inputs.shape[-1:] or outputs.shape != inputs.shape:
            return None
        inputs, outputs = inputs.float(), outputs.float()
        shift = torch.zeros_like(weight.float()) if bias is None else bias.float()
        mean, gain = torch.zeros_like(inputs[..., :1]), weight.float()
        if isinstance(module, nn.LayerNorm):
            mean = inputs.mean(-1, keepdim=True)
        else:
            gain = module.forward(torch.ones_like(weight)[None])[0].float() - shift  # weight, or 1 + weight
        scaled, unshifted = (inputs - mean) * gain, outputs - shift
        size = scaled.square().sum(-1, keepdim=True) / (scaled * unshifted).sum(-1, keepdim=True).clamp_min(1e-12)
        size = size.clamp_min(1e-12)
        if not (unshifted - scaled / size).abs().mean() <= TOLERANCE * unshifted.abs().mean():
            return None
        return cls(gain, shift, mean, size)

    def inverse(self, target: torch.Tensor) -> torch.Tensor:
        """Return the input that gives `target`, mean and size as they are.

        Example:
            >>> norm = ObservedNorm(torch.tensor([2.0, 0.5]), torch.zeros(2), torch.zeros(1, 1), torch.tensor([[4.0]]))
            >>> norm.inverse(torch.tensor([[2.0, 1.0]]))  # target / gain * size
            tensor([[4., 8.]])
        """
        return torch.where(self.gain == 0, 0, (target - self.bias) / self.gain) * self.size + self.mean
