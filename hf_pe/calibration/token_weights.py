"""Token weights: how much an error at a token changes what later layers read."""

import torch

GROWN = 0.5
"""Power of a state's mean square that an error counts by beside `turning` where the state goes on without a norm: later
blocks add to it before a norm divides by its size, which is then neither that of now (0) nor the same for all (1)."""


def turning(before: torch.Tensor, gives: torch.Tensor) -> torch.Tensor:
    """What a squared error of a map counts, token by token [..., 1].

    A few tokens of many models are a hundred times as large as the others, and a plain regression would give the others
    up for them. But later blocks see states through norms: their direction alone. So an error counts by how far the
    state turns where what the map gives is missing: sin^2 of the angle between `before` and before + gives, over the
    mean square of `gives`. For something small at right angles that is 1 / the mean square of the state.

    Args:
        before: what the map's output is added to, [..., width].
        gives: that output.
    """
    before, gives = before.float(), gives.float()
    state = before + gives
    along = (state * gives).mean(-1, keepdim=True) / mean_square(state)
    return mean_square(gives - along * state) / mean_square(gives) / mean_square(before)  # by the law of sines


def mean_square(states: torch.Tensor) -> torch.Tensor:
    """Of each token, never zero, [..., 1]."""
    return states.square().mean(-1, keepdim=True).clamp_min(1e-12)
