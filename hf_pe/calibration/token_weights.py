"""Token weights: how much a squared error at a token matters to the layers that read the hidden states later."""

import torch

SIZE_EXPONENT = 0.5
"""Exponent of the hidden state's mean square in a token's weight where the residual stream continues without a norm.

There later blocks add to the state before a norm divides by its size. If they changed that size little, an error would
count relative to it (exponent 0); if they made it the same for all tokens, an error would count as it is (1). Real
models lie between."""


def direction_weight(residual: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    """Return how much a squared error in each token's update rotates its hidden state.

    A block adds an update u to the residual stream r. Later blocks read the sum s = r + u through norms, which keep
    only its direction, so an error in u matters by how far it rotates s. With theta the angle between r and s,

        weight = sin(theta)^2 / mean(u^2)

    For an update that is small and orthogonal to r this is 1 / mean(r^2): a token whose state is a hundred times as
    large as the others' (an attention sink) cannot dominate a least-squares fit.

    Args:
        residual: r, the hidden state before the update. *Shape:* (..., width)
        update: u, what the block adds to it. *Shape:* (..., width)

    Returns:
        One non-negative weight per token, float32. *Shape:* (..., 1)

    Example:
        >>> r, u = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])
        >>> direction_weight(r, u)  # sin(theta)^2 = 16 / 25, mean(u^2) = 8
        tensor([[0.0800]])
    """
    residual, update = residual.float(), update.float()
    state = residual + update
    projection = (state * update).mean(-1, keepdim=True) / mean_square(state)
    orthogonal = update - projection * state
    # |orthogonal| / |residual| = |update| sin(angle of u and s) / |residual| = sin(theta), by the law of sines
    return mean_square(orthogonal) / mean_square(update) / mean_square(residual)


def mean_square(states: torch.Tensor) -> torch.Tensor:
    """Return the mean square of each token's hidden state, at least 1e-12.

    Args:
        states: *Shape:* (..., width)

    Returns:
        *Shape:* (..., 1)
    """
    return states.square().mean(-1, keepdim=True).clamp_min(1e-12)
