"""Holds a model in evaluation mode, or frozen, inside a block."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold a model in evaluation mode inside the block; afterwards each module has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Hold a model in evaluation mode, and its parameters without gradients, inside the block.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> with frozen(layer):
        ...     (layer.training, layer.weight.requires_grad)
        (False, False)
        >>> (layer.training, layer.weight.requires_grad)
        (True, True)
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with evaluating(model):
        for parameter in trainable:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)
