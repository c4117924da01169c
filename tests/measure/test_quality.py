import numpy as np
import pytest
from scipy.stats import bootstrap

from hf_pe.measure import changes
from hf_pe.tasks import Judged

DRAW = np.random.default_rng(3)
RIGHT = DRAW.random(400) < 0.9
HARD = np.arange(400) < 100


def judged(right, slices=None):
    return Judged({"right": right}, lambda c: {"accuracy": float(c["right"].mean())}, slices or {})


def test_a_model_beside_itself_has_no_change_and_no_doubt():
    (found,) = changes(judged(RIGHT), judged(RIGHT))
    assert (found.before, found.low, found.high) == (found.after, 0, 0)


def test_the_interval_is_scipys_paired_one():
    worse = RIGHT & (DRAW.random(400) < 0.95)
    (found,) = changes(judged(RIGHT), judged(worse), resamples=4000)
    assert found.examples == 400
    assert found.low < found.after - found.before < found.high < 0
    theirs = bootstrap(
        (worse.astype(float), RIGHT.astype(float)), lambda a, b, axis: (a - b).mean(axis=axis),
        paired=True, method="percentile", n_resamples=4000, rng=DRAW,
    ).confidence_interval  # fmt: skip
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)


def test_pairing_makes_it_narrower_than_two_intervals_would_be():
    worse = RIGHT & (np.arange(400) != 7)
    (found,) = changes(judged(RIGHT), judged(worse))
    assert found.high - found.low < 0.02, "one example of 400 differs"


def test_a_slice_tells_where_it_got_worse():
    worse = RIGHT & ~(HARD & (DRAW.random(400) < 0.4))
    few = np.arange(400) < 19
    slices = {"hard": HARD, "easy": ~HARD, "few": few}
    (found,) = changes(judged(RIGHT, slices), judged(worse, slices))
    parts = {part.name: part for part in found.slices}
    assert set(parts) == {"hard", "easy"}, "19 examples tell nothing"
    assert parts["hard"].high < 0
    assert (parts["easy"].low, parts["easy"].high) == (0, 0)
    assert parts["hard"].examples == 100
