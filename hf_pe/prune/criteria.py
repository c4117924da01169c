"""Importance criteria: pure functions from weights and statistics to one score per unit. Larger is kept."""

from collections.abc import Callable
from typing import NamedTuple

import torch


class Evidence(NamedTuple):
    """What a criterion may look at for one group of units.

    Attributes:
        weights: every slot's weights with the units first, [units, rest].
        consumer: the linear map that reads the units, [outputs, units].
        second_moment: mean of the squared activations of each unit, [units]; None without calibration data.
    """

    weights: list[torch.Tensor]
    consumer: torch.Tensor
    second_moment: torch.Tensor | None


class Criterion(NamedTuple):
    """A criterion with what the card says about it."""

    score: Callable[[Evidence], torch.Tensor]
    needs_data: bool
    title: str
    reference: str


def magnitude(evidence: Evidence) -> torch.Tensor:
    """L2 norm over all weights of the unit [units] (Li et al. 2017, arXiv:1608.08710, with L2)."""
    squares = [w.float().square().sum(1) for w in evidence.weights]
    return torch.stack(squares).sum(0).sqrt()


def activation_weight(evidence: Evidence) -> torch.Tensor:
    """Root mean square activation times the norm of the weights that read it [units].

    The structured form of |W| * ||X|| (Sun et al. 2024, arXiv:2306.11695, eq. 1).
    """
    assert evidence.second_moment is not None, "activation_weight needs calibration data"
    reading: torch.Tensor = torch.linalg.vector_norm(evidence.consumer.float(), dim=0)
    return evidence.second_moment.float().sqrt() * reading


CRITERIA = {
    "magnitude": Criterion(magnitude, False, "weight magnitude", "https://arxiv.org/abs/1608.08710"),
    "activation_weight": Criterion(
        activation_weight, True, "activation times weight", "https://arxiv.org/abs/2306.11695"
    ),
}
