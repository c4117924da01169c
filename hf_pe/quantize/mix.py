"""Which layers stay as they are under a budget."""

from collections.abc import Mapping

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

GAP, SECONDS = 1e-3, 20.0
"""The search ends that near to the best there can be, or after so long."""


def worth_keeping(losses: Mapping[str, float], costs: Mapping[str, float], room: float) -> list[str]:
    """The layers whose losses, together, are largest among all choices that fit into `room` (0/1 knapsack).

    That losses of layers add up is an assumption; `docs/benchmarks.md` says how far it holds.

    Args:
        losses: by layer, what packing it alone costs; never negative.
        costs: by layer, what keeping it takes, in any unit.
        room: for all that are kept, in the same unit.
    """
    names = list(losses)
    values = np.array([losses[name] for name in names])
    weights = np.array([costs[name] for name in names])
    if room < weights.min() or not values.any():
        return []
    found = milp(
        -values / values.sum(),
        constraints=LinearConstraint(weights / room, ub=1.0),
        integrality=np.ones(len(names)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": GAP, "time_limit": SECONDS},
    )
    return [name for name, chosen in zip(names, found.x.round(), strict=True) if chosen]
