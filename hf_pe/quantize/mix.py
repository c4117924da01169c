"""Which layers get more bits under a budget."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

GAP, SECONDS = 1e-3, 20.0
"""The search ends that near to the best there can be, or after so long."""


class Offer(NamedTuple):
    """More bits for one layer.

    Attributes:
        layer: its name.
        bits: a weight.
        spared: how much less is lost; never negative.
        cost: in any unit.
    """

    layer: str
    bits: float
    spared: float
    cost: float


def worth_most(offers: Sequence[Offer], room: float) -> list[Offer]:
    """The offers, at most one for each layer, that together spare most of all that fit into `room`: a knapsack with
    choices.

    That losses of layers add up is an assumption; `docs/benchmarks.md` says how far it holds.

    Args:
        offers: of all layers.
        room: for all that are taken, in the unit of their costs.
    """
    values, costs = np.array([each.spared for each in offers]), np.array([each.cost for each in offers])
    if room < costs.min() or not values.any():
        return []
    layers = {name: number for number, name in enumerate(dict.fromkeys(each.layer for each in offers))}
    once = np.zeros((len(layers), len(offers)))
    once[[layers[each.layer] for each in offers], np.arange(len(offers))] = 1
    found = milp(
        -values / values.sum(),
        constraints=[LinearConstraint(costs / room, ub=1.0), LinearConstraint(once, ub=1.0)],
        integrality=np.ones(len(offers)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": GAP, "time_limit": SECONDS},
    )
    return [offer for offer, chosen in zip(offers, found.x.round(), strict=True) if chosen]
