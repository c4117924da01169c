"""Importance criteria: pure functions from weights and statistics to one score per unit. Larger is kept."""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import torch

from hf_pe.registered_names import RegisteredName


class UnitStatistics(NamedTuple):
    """What a criterion may look at for one group of units.

    Attributes:
        weights: every slot's weights with the units first, [units, rest].
        consumer: the linear map that reads the units, [outputs, units, places]; a unit is one place of its input, or
            head_dim of them.
        keep: how many units will stay.
        gram: X^T X / n of that input, [units * places, units * places]; None without calibration data.
        gradients: derivative of the loss by a gate of 1 on each unit, [examples, units]; None without gradients.
        outputs: sum of g g^T, g the derivative of the loss by the consumer's output, [outputs, outputs]; None likewise.
        mean: mean of that input, [units * places]; None without calibration data. gram - mean mean^T is its covariance.
    """

    weights: list[torch.Tensor]
    consumer: torch.Tensor
    keep: int
    gram: torch.Tensor | None = None
    gradients: torch.Tensor | None = None
    outputs: torch.Tensor | None = None
    mean: torch.Tensor | None = None


class Criterion(NamedTuple):
    """A criterion with what it needs and what the card says about it.

    Attributes:
        score: returns one score per unit, [units]; the units with the largest ones are kept.
        needs: the statistics that are gathered for it. "activations" gives `gram` and `mean`; with "weighted
            activations" each token counts in them by how far its state turns, as in the refit; "gradients" gives
            `gradients` and `outputs`.
        title: as cards and plans name it.
        reference: link of the paper; None without one.

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
    """L2 norm over all weights of the unit [units] (Li et al. 2017, arXiv:1608.08710, with L2)."""
    return torch.stack([w.float().square().sum(1) for w in statistics.weights]).sum(0).sqrt()


def activation_weight(statistics: UnitStatistics) -> torch.Tensor:
    """Root mean square activation times the norm of the weights that read it [units].

    The structured form of |W| * ||X|| (Sun et al. 2024, arXiv:2306.11695, eq. 1; An et al. 2024, arXiv:2312.11983).
    """
    reading = statistics.consumer.float().square().sum(0)
    return (_mean_squares(statistics) * reading).sum(1).sqrt()


def taylor(statistics: UnitStatistics) -> torch.Tensor:
    """First-order change of the loss when the unit goes, its size averaged over examples [units].

    Molchanov et al. 2017, arXiv:1611.06440, eq. 7: the mean of |dL/da * a|.
    """
    return _gradients(statistics).abs().mean(0)


def fisher(statistics: UnitStatistics) -> torch.Tensor:
    """Second-order change of the loss, its Hessian by the diagonal of the empirical Fisher matrix of the gates [units].

    Theis et al. 2018, arXiv:1801.05787, eq. 8; for transformers Kwon et al. 2022, arXiv:2204.09656, eq. 8.
    """
    return _gradients(statistics).square().mean(0) / 2


def obs(statistics: UnitStatistics) -> torch.Tensor:
    """Optimal brain surgeon: what the output loses when the unit goes and all others adapt [units].

    With P the inverse Gram matrix, unit B costs tr(W_B P_BB^-1 W_B^T). The cheapest few go, W and P are updated as if
    they were gone, and so on; the score is the turn at which a unit went, kept units come last by their cost (Hassibi
    and Stork 1992, eq. 5; for structures Kurtic et al. 2023, arXiv:2302.04089, eq. 5 and 6).
    """
    assert statistics.gram is not None, "obs needs calibration data"
    outputs, units, places = statistics.consumer.shape
    weight = statistics.consumer.double().reshape(outputs, -1).clone()
    gram = statistics.gram.double()
    inverse = torch.linalg.inv(gram + RIDGE * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram)).to(gram))
    left = torch.arange(units, device=gram.device)
    scores = torch.zeros(units, dtype=torch.float64, device=gram.device)
    turn = 0
    while True:
        cost = _costs(weight, inverse, places)
        count = min(max(len(left) // STEPS, 1), len(left) - statistics.keep)
        if count == 0:
            scores[left] = turn + 1 + cost / cost.max().clamp_min(1e-30)
            return scores.float()
        cheapest = cost.argsort()[:count]
        scores[left[cheapest]] = turn + 0.5 * cost[cheapest] / cost[cheapest].max().clamp_min(1e-30)
        stays = torch.ones(len(left), dtype=torch.bool, device=gram.device)
        stays[cheapest] = False
        rows = stays.repeat_interleave(places)
        cross = inverse[rows][:, ~rows] @ torch.linalg.inv(inverse[~rows][:, ~rows])
        weight = weight[:, rows] - weight[:, ~rows] @ cross.T
        inverse = inverse[rows][:, rows] - cross @ inverse[~rows][:, rows]
        left, turn = left[stays], turn + 1


def obs_kfac(statistics: UnitStatistics) -> torch.Tensor:
    """As obs, but what the output loses is weighted by what the loss feels of it [units].

    The Hessian of the consumer is the product of the inputs' Gram matrix and M, that of the derivatives by its output
    (van der Ouderaa et al. 2023, arXiv:2312.17244, eq. 5 and 9): the cost becomes tr(P_BB^-1 W_B^T M W_B). M is
    measured from few directions: half of it is the identity of the same mean.
    """
    assert statistics.outputs is not None, "obs_kfac needs gradients"
    felt = statistics.outputs.double()
    felt = felt / felt.diagonal().mean().clamp_min(1e-30)
    root = torch.linalg.cholesky((felt + torch.eye(len(felt)).to(felt)) / 2)
    consumer = statistics.consumer.double()
    return obs(statistics._replace(consumer=(root.T @ consumer.flatten(1)).reshape(consumer.shape)))


def reap(gates: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """Router-weighted activation of one expert over the tokens it gets, [tokens] each: the mean of gate times norm.

    Lasby et al. 2025, arXiv:2510.13999: an expert that gets little weight, or gives little, goes first.
    """
    return (gates.float() * norms.float()).mean() if len(gates) else torch.zeros(())


RIDGE = 1e-3
"""Of the Gram matrix that obs inverts, relative to its mean diagonal."""
STEPS = 64
"""obs takes away 1/STEPS of the units that are left between two updates."""


def _costs(weight: torch.Tensor, inverse: torch.Tensor, places: int) -> torch.Tensor:
    if places == 1:
        return weight.square().sum(0) / inverse.diagonal()
    units = weight.shape[1] // places
    own = inverse.reshape(units, places, units, places).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    blocks = weight.reshape(-1, units, places).permute(1, 2, 0)  # [units, places, outputs]
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
"""By name in recipe files: recipes, their schema and cards follow from these."""

REPLACEMENTS = {
    "magnitude_l1": "Choose magnitude_l2.",
    "activation": "Choose activation_weight, which takes the weights into account that read the unit.",
    "random": "It is a control, no way to prune: for an experiment, add a line to hf_pe.prune.criteria.CRITERIA.",
}
"""Of criteria that recipes named before version 0.1, what to do in their place."""

CriterionName = Annotated[str, RegisteredName(CRITERIA, REPLACEMENTS)]
"""A name of `CRITERIA`."""
