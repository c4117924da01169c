"""Describe what a norm did to one batch, so that it can be inverted for the mean and the size that its input had."""

from typing import NamedTuple

import torch
from torch import nn

TOLERANCE = 2e-2
"""How far a tensor may be from a norm's output, relative to its root mean square, and still count as that output."""


class ObservedNorm(NamedTuple):
    """A norm whose output on one batch was (input - mean) / size * gain + bias.

    Attributes:
        gain: factor of each coordinate. *Shape:* (width,)
        bias: zero where the norm has none. *Shape:* (width,)
        mean: of each token's input; zero for RMS norms. *Shape:* (..., 1)
        size: standard deviation of each token's input, for RMS norms its root mean square. *Shape:* (..., 1)
    """

    gain: torch.Tensor
    bias: torch.Tensor
    mean: torch.Tensor
    size: torch.Tensor

    @classmethod
    def of(cls, module: nn.Module, inputs: torch.Tensor, outputs: torch.Tensor) -> "ObservedNorm | None":
        """Return the norm that a module applied, from its input and output.

        None where the module is no norm over the last dimension, such as a batch norm.
        """
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
        """Return the input whose output would be `target`, if the mean and the size stayed as they are.

        Example:
            >>> norm = ObservedNorm(torch.tensor([2.0, 0.5]), torch.zeros(2), torch.zeros(1, 1), torch.tensor([[4.0]]))
            >>> norm.inverse(torch.tensor([[2.0, 1.0]]))  # target / gain * size
            tensor([[4., 8.]])
        """
        return torch.where(self.gain == 0, 0, (target - self.bias) / self.gain) * self.size + self.mean
