"""Importance criteria: pure functions from weights and statistics to one score per unit.

The units with the largest scores are kept.
"""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import torch

from hf_pe.registered_names import RegisteredName


class UnitStatistics(NamedTuple):
    """Statistics of one group of units, from which a criterion scores them.

    The consumer is the linear layer that reads the units. A unit is one column of its input (an FFN neuron), or several
    (a head has head_dim of them): `columns`.

    Attributes:
        weights: the weights of every slot, with the units first. *Shape:* (units, rest) each
        consumer: the consumer's weight. *Shape:* (outputs, units, columns)
        keep: how many units will be kept.
        gram: X^T X / n of the consumer's input. *Shape:* (units * columns, units * columns). None without calibration
            data.
        gradients: gradient of the loss with respect to a gate of 1 on each unit. *Shape:* (examples, units). None where
            the criterion needs none.
        outputs: sum of g g^T, g the gradient with respect to the consumer's output. *Shape:* (outputs, outputs). None
            without gradients.
        mean: mean of the consumer's input. *Shape:* (units * columns,). None without calibration data. The
            covariance is gram - mean mean^T.
    """

    weights: list[torch.Tensor]
    consumer: torch.Tensor
    keep: int
    gram: torch.Tensor | None = None
    gradients: torch.Tensor | None = None
    outputs: torch.Tensor | None = None
    mean: torch.Tensor | None = None


class Criterion(NamedTuple):
    """A criterion with the statistics that it needs and the words that the card has for it.

    Attributes:
        score: returns one score per unit, [units]; the units with the largest ones are kept.
        needs: the statistics that are gathered for it. "activations" gives `gram` and `mean`; with "weighted
            activations" each token has its `direction_weight` in them, as in the refit; "gradients" gives `gradients`
            and `outputs`.
        title: its name on cards and in plans.
        reference: link to the paper; None without one.

    Example:
        >>> weights = torch.tensor([[3.0, 4.0], [0.0, 1.0]])  # two units of two weights each
        >>> CRITERIA["magnitude_l2"].score(UnitStatistics([weights], torch.zeros(1, 2, 1), keep=1))
        tensor([5., 1.])
    """

    score: Callable[[UnitStatistics], torch.Tensor]
    needs: tuple[Literal["activations", "weighted activations", "gradients"], ...]
    title: str
    reference: str | None


def magnitude_l2(statistics: UnitStatistics) -> torch.Tensor:
    """Return the L2 norm over all weights of each unit [units].

    Li et al. 2017, arXiv:1608.08710, with the L2 norm in place of L1.
    """
    return torch.stack([w.float().square().sum(1) for w in statistics.weights]).sum(0).sqrt()


def activation_weight(statistics: UnitStatistics) -> torch.Tensor:
    """Return the root mean square activation of each unit times the norm of the weights that read it [units].

    The structured form of |W| * ||X|| (Sun et al. 2024, arXiv:2306.11695, eq. 1; An et al. 2024, arXiv:2312.11983).
    """
    reading = statistics.consumer.float().square().sum(0)
    return (_mean_squares(statistics) * reading).sum(1).sqrt()


def taylor(statistics: UnitStatistics) -> torch.Tensor:
    """Return the first-order change of the loss when a unit is removed, its magnitude averaged over examples [units].

    Molchanov et al. 2017, arXiv:1611.06440, eq. 7: the mean of |dL/da * a|.
    """
    return _gradients(statistics).abs().mean(0)


def fisher(statistics: UnitStatistics) -> torch.Tensor:
    """Return the second-order change of the loss when a unit is removed [units].

    The Hessian is estimated by the diagonal of the empirical Fisher matrix of the units' gates (Theis et al. 2018,
    arXiv:1801.05787, eq. 8; for transformers Kwon et al. 2022, arXiv:2204.09656, eq. 8).
    """
    return _gradients(statistics).square().mean(0) / 2


def obs(statistics: UnitStatistics) -> torch.Tensor:
    """Score units by the optimal brain surgeon: the output's error when one is removed and the others adapt [units].

    With P the inverse Gram matrix, removing unit B costs tr(W_B P_BB^-1 W_B^T). The cheapest few are removed, W and P
    are updated as if they were gone, and so on. The score is the round in which a unit is removed; the units that
    remain have the highest scores, ordered by their cost (Hassibi and Stork 1992, eq. 5; for structures Kurtic et al.
    2023, arXiv:2302.04089, eq. 5 and 6).
    """
    assert statistics.gram is not None, "obs needs calibration data"
    outputs, units, columns = statistics.consumer.shape
    weight = statistics.consumer.double().reshape(outputs, -1).clone()
    gram = statistics.gram.double()
    inverse = torch.linalg.inv(gram + RIDGE * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram)).to(gram))
    remaining = torch.arange(units, device=gram.device)
    scores = torch.zeros(units, dtype=torch.float64, device=gram.device)
    turn = 0
    while True:
        cost = _costs(weight, inverse, columns)
        count = min(max(len(remaining) // STEPS, 1), len(remaining) - statistics.keep)
        if count == 0:
            scores[remaining] = turn + 1 + cost / cost.max().clamp_min(1e-30)
            return scores.float()
        cheapest = cost.argsort()[:count]
        scores[remaining[cheapest]] = turn + 0.5 * cost[cheapest] / cost[cheapest].max().clamp_min(1e-30)
        is_kept = torch.ones(len(remaining), dtype=torch.bool, device=gram.device)
        is_kept[cheapest] = False
        rows = is_kept.repeat_interleave(columns)
        cross = inverse[rows][:, ~rows] @ torch.linalg.inv(inverse[~rows][:, ~rows])
        weight = weight[:, rows] - weight[:, ~rows] @ cross.T
        inverse = inverse[rows][:, rows] - cross @ inverse[~rows][:, rows]
        remaining, turn = remaining[is_kept], turn + 1


def obs_kfac(statistics: UnitStatistics) -> torch.Tensor:
    """Score units as `obs`, with the error of the output weighted by the curvature of the loss (K-FAC) [units].

    The Hessian of the consumer is approximated by the product of the Gram matrix of its inputs and M, the Gram matrix
    of the gradients with respect to its output (van der Ouderaa et al. 2023, arXiv:2312.17244, eq. 5 and 9). The cost
    becomes tr(P_BB^-1 W_B^T M W_B). M is estimated from few gradients, so it is averaged with the identity.
    """
    assert statistics.outputs is not None, "obs_kfac needs gradients"
    curvature = statistics.outputs.double()
    curvature = curvature / curvature.diagonal().mean().clamp_min(1e-30)
    root = torch.linalg.cholesky((curvature + torch.eye(len(curvature)).to(curvature)) / 2)
    consumer = statistics.consumer.double()
    return obs(statistics._replace(consumer=(root.T @ consumer.flatten(1)).reshape(consumer.shape)))


def reap(gates: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """Return the router-weighted activation of one expert: the mean of gate times output norm over its tokens.

    An expert with small gates, or small outputs, is removed first (Lasby et al. 2025, arXiv:2510.13999).

    Args:
        gates: the router's weights of the expert. *Shape:* (tokens,)
        norms: norms of the expert's outputs. *Shape:* (tokens,)

    Returns:
        A scalar; 0 for an expert that gets no token.
    """
    return (gates.float() * norms.float()).mean() if len(gates) else torch.zeros(())


RIDGE = 1e-3
"""The ridge of the Gram matrix that `obs` inverts, relative to its mean diagonal."""
STEPS = 64
"""`obs` removes 1/STEPS of the remaining units between two updates."""


def _costs(weight: torch.Tensor, inverse: torch.Tensor, columns: int) -> torch.Tensor:
    if columns == 1:
        return weight.square().sum(0) / inverse.diagonal()
    units = weight.shape[1] // columns
    own = inverse.reshape(units, columns, units, columns).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    blocks = weight.reshape(-1, units, columns).permute(1, 2, 0)  # [units, columns, outputs]
    cost: torch.Tensor = (blocks * torch.linalg.solve(own, blocks)).sum((1, 2))
    return cost


def _mean_squares(statistics: UnitStatistics) -> torch.Tensor:
    assert statistics.gram is not None, "this criterion needs calibration data"
    return statistics.gram.diagonal().float().reshape(statistics.consumer.shape[1:])


def _gradients(statistics: UnitStatistics) -> torch.Tensor:
    assert statistics.gradients is not None, "this criterion needs gradients"
    return statistics.gradients.float()


CRITERIA = {
    "magnitude_l2": Criterion(magnitude_l2, (), "L2 magnitude", "https://arxiv.org/abs/1608.08710"),
    "activation_weight": Criterion(
        activation_weight, ("activations",), "activation times weight", "https://arxiv.org/abs/2306.11695"
    ),
    "taylor": Criterion(taylor, ("gradients",), "first-order Taylor", "https://arxiv.org/abs/1611.06440"),
    "fisher": Criterion(fisher, ("gradients",), "diagonal Fisher", "https://arxiv.org/abs/1801.05787"),
    "obs": Criterion(obs, ("weighted activations",), "optimal brain surgeon", "https://arxiv.org/abs/2302.04089"),
    "obs_kfac": Criterion(
        obs_kfac,
        ("weighted activations", "gradients"),
        "optimal brain surgeon with K-FAC",
        "https://arxiv.org/abs/2312.17244",
    ),
}
"""The criteria by their names in recipe files; recipes, their schema and cards follow from them."""

REPLACEMENTS = {
    "magnitude_l1": "Choose magnitude_l2.",
    "activation": "Choose activation_weight, which takes the weights into account that read the unit.",
    "random": "It is a control and no way to prune. For an experiment, add a line to hf_pe.prune.criteria.CRITERIA.",
}
"""For criteria that recipes could name before version 0.1, a sentence that says what to do in their place."""

CriterionName = Annotated[str, RegisteredName(CRITERIA, REPLACEMENTS)]
"""A name of `CRITERIA`."""
