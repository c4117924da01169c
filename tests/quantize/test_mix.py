import itertools

import numpy as np
import pytest

from hf_pe.quantize.mix import Offer, worth_most


@pytest.mark.parametrize("each", [1, 2])
def test_the_choice_is_the_best_of_all(each):
    """With one offer for a layer, and with two of which one may be taken."""
    draw = np.random.default_rng(0)
    layers = [
        [Offer(f"l{i}", 8.0 * (k + 1), float(draw.random()), float(draw.integers(1, 9))) for k in range(each)]
        for i in range(10 // each)
    ]
    offers = [offer for layer in layers for offer in layer]
    for room in (0.5, 4, 11, 30, 100):
        taken = worth_most(offers, room)
        assert sum(offer.cost for offer in taken) <= room
        assert len({offer.layer for offer in taken}) == len(taken)
        choices = ([o for o in chosen if o] for chosen in itertools.product(*([None, *layer] for layer in layers)))
        best = max(sum(o.spared for o in chosen) for chosen in choices if sum(o.cost for o in chosen) <= room)
        assert sum(offer.spared for offer in taken) == pytest.approx(best, rel=1e-3)


def test_layers_that_cost_nothing_are_not_kept():
    assert worth_most([Offer("a", 16, 0.0, 1.0), Offer("b", 16, 0.0, 1.0)], 2.0) == []
