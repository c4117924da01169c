"""Which layers get more bits under a budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from hf_pe.model_spec import ModelSpec
from hf_pe.quantize.layers import LinearLayers
from hf_pe.report import percent

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
    solution = milp(
        -values / values.sum(),
        constraints=[LinearConstraint(costs / room, ub=1.0), LinearConstraint(once, ub=1.0)],
        integrality=np.ones(len(offers)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": GAP, "time_limit": SECONDS},
    )
    return [offer for offer, chosen in zip(offers, solution.x.round(), strict=True) if chosen]


@dataclass(frozen=True)
class Mixed:
    """Which layers a budget keeps.

    Attributes:
        layers: all of them.
        kept: names of those that keep their weights.
        mean_bits: of a weight of all layers.
        expected_loss: fraction of what quantizing all layers would lose.
        spec: of the model afterwards.
    """

    layers: LinearLayers
    kept: tuple[str, ...]
    mean_bits: float
    expected_loss: float
    spec: ModelSpec

    def notes(self, title: str, sensitivity: str) -> tuple[str, ...]:
        """Return sentences for the plan.

        Args:
            title: of the quantized weights: "NF4".
            sensitivity: how it was measured.
        """
        count = len(self.layers.weights)
        return (
            f"{count - len(self.kept)} of {count} linear layers in {title}: {self.mean_bits:.3g} bits a weight in the "
            "mean",
            f"{len(self.kept)} kept by their {sensitivity} sensitivity",
            f"loss expected: {percent(self.expected_loss)} of all packed",
        )


def keep_most_sensitive(layers: LinearLayers, lost: Mapping[str, float], room: float, bits: float) -> Mixed:
    """Keep the layers that are worth most, as far as there is room.

    Args:
        layers: that can be quantized.
        lost: what quantizing each alone loses.
        room: bits above those of the model with all layers quantized.
        bits: of a quantized weight.
    """
    extra = layers.own_bits - bits
    offers = [Offer(name, layers.own_bits, lost[name], count * extra) for name, count in layers.weights.items()]
    taken = {each.layer: each for each in worth_most(offers, room)}
    by_layer = {name: taken[name].bits if name in taken else bits for name in layers.weights}
    spared = sum(each.spared for each in taken.values())
    return Mixed(
        layers=layers,
        kept=tuple(taken),
        mean_bits=sum(count * by_layer[name] for name, count in layers.weights.items()) / layers.total,
        expected_loss=1 - spared / max(sum(lost.values()), 1e-30),
        spec=layers.with_bits({name: each for name, each in by_layer.items() if name not in taken}),
    )
