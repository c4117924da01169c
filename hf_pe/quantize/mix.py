"""Choose which layers keep more bits under a budget, by how much quantizing each of them costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from hf_pe.model_spec import ModelSpec
from hf_pe.quantize.layers import LinearLayers
from hf_pe.report import percent

GAP, SECONDS = 1e-3, 20.0
"""The search ends within this relative gap of the optimum, or after this time."""


class Offer(NamedTuple):
    """Offer more bits for one layer.

    Attributes:
        layer: Name of the layer.
        bits: Bits per weight.
        spared: By how much the loss shrinks; never negative.
        cost: Additional size, in any unit.
    """

    layer: str
    bits: float
    spared: float
    cost: float


def worth_most(offers: Sequence[Offer], room: float) -> list[Offer]:
    """Choose the offers, at most one for each layer, that fit into `room` and spare the largest loss in total.

    This is a multiple-choice knapsack. It assumes that the losses of layers add up; `docs/benchmarks.md` has how far
    that holds.

    Args:
        offers: Offers of all layers.
        room: Total size for the chosen offers, in the unit of their costs.
    """
    values, costs = np.array([offer.spared for offer in offers]), np.array([offer.cost for offer in offers])
    if room < costs.min() or not values.any():
        return []
    layers = {name: number for number, name in enumerate(dict.fromkeys(offer.layer for offer in offers))}
    offers_of_layer = np.zeros((len(layers), len(offers)))
    offers_of_layer[[layers[offer.layer] for offer in offers], np.arange(len(offers))] = 1
    solution = milp(
        -values / values.sum(),
        constraints=[LinearConstraint(costs / room, ub=1.0), LinearConstraint(offers_of_layer, ub=1.0)],
        integrality=np.ones(len(offers)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": GAP, "time_limit": SECONDS},
    )
    return [offer for offer, chosen in zip(offers, solution.x.round(), strict=True) if chosen]


@dataclass(frozen=True)
class Mixed:
    """Hold which layers keep their weights under a budget.

    Attributes:
        layers: All linear layers.
        kept: Names of the layers that keep their weights.
        mean_bits: Mean bits per weight over all layers.
        expected_loss: Expected loss as a fraction of the loss from quantizing all layers.
        spec: Model afterwards.
    """

    layers: LinearLayers
    kept: tuple[str, ...]
    mean_bits: float
    expected_loss: float
    spec: ModelSpec

    def notes(self, title: str, sensitivity: str) -> tuple[str, ...]:
        """Return sentences for the plan.

        Args:
            title: Title of the method, such as "NF4".
            sensitivity: How the sensitivity of layers was measured.
        """
        count = len(self.layers.weights)
        return (
            f"{count - len(self.kept)} of {count} linear layers in {title}: on average {self.mean_bits:.3g} bits per "
            "weight",
            f"{len(self.kept)} layers kept by their {sensitivity} sensitivity",
            f"expected loss: {percent(self.expected_loss)} of the loss with all layers quantized",
        )


def keep_most_sensitive(layers: LinearLayers, lost: Mapping[str, float], room: float, bits: float) -> Mixed:
    """Keep the weights of the most sensitive layers, as far as the budget has room for them.

    Args:
        layers: Linear layers of the model.
        lost: Loss from quantizing each layer alone.
        room: Bits that the budget leaves above those of the model with all layers quantized.
        bits: Bits of a quantized weight.
    """
    extra = layers.own_bits - bits
    offers = [Offer(name, layers.own_bits, lost[name], count * extra) for name, count in layers.weights.items()]
    chosen = {offer.layer: offer for offer in worth_most(offers, room)}
    by_layer = {name: chosen[name].bits if name in chosen else bits for name in layers.weights}
    spared = sum(offer.spared for offer in chosen.values())
    return Mixed(
        layers=layers,
        kept=tuple(chosen),
        mean_bits=sum(count * by_layer[name] for name, count in layers.weights.items()) / layers.total,
        expected_loss=1 - spared / max(sum(lost.values()), 1e-30),
        spec=layers.with_bits({name: bits_of_layer for name, bits_of_layer in by_layer.items() if name not in chosen}),
    )
