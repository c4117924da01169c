import math

import numpy as np
import pytest

from hf_pe.measure.forgetting import forgetting, losses
from hf_pe.nearness_records import CLEAR_LOSS
from hf_pe.tasks import EvalResult
from hf_pe.tasks.likelihood import perplexity

DRAW = np.random.default_rng(0)
ROWS = 200


def evaluated(mean_loss, spread=0.3):
    """Rows of 10 tokens; the same rows are hard for every model."""
    hard = np.random.default_rng(1).normal(3, 1, ROWS)
    loss = (hard + mean_loss + DRAW.normal(0, spread, ROWS)) * 10
    return EvalResult({"loss": loss, "tokens": np.full(ROWS, 10.0)}, perplexity)


def agreeing(fraction):
    right = (DRAW.random(ROWS) < fraction).astype(float)
    return EvalResult({"right": right}, lambda c: {"agreement": float(c["right"].mean())})


def test_the_same_models_have_lost_nothing():
    same = evaluated(0)
    lost = forgetting(losses(same, same, None), losses(same, same, None))
    assert (lost.measure, lost.evaluation) == ("perplexity", 0)
    assert (lost.general.value, lost.excess.low, lost.excess.high) == (0, 0, 0)
    assert not lost.is_clear


def test_a_loss_of_the_general_text_alone_is_clear():
    own, general = losses(evaluated(0), evaluated(0.1), None), losses(evaluated(0), evaluated(0.4), None)
    lost = forgetting(own, general)
    assert lost.evaluation == pytest.approx(0.1, abs=0.06)
    assert lost.general.value == pytest.approx(0.4, abs=0.06)
    assert lost.excess.value == pytest.approx(lost.general.value - lost.evaluation)
    assert lost.excess.low < 0.3 < lost.excess.high
    assert lost.is_clear


@pytest.mark.parametrize(("own", "general"), [(0.4, 0.4), (0.4, 0.1), (-0.4, 0.0), (0.0, CLEAR_LOSS)])
def test_an_equal_loss_a_gain_of_the_users_text_and_a_small_loss_are_none(own, general):
    before = evaluated(0)
    pairs = [losses(before, EvalResult({**before.columns, "loss": before.columns["loss"] + 10 * each}, perplexity), None)
             for each in (own, general)]  # fmt: skip
    assert not forgetting(*pairs).is_clear


def test_without_a_perplexity_the_agreement_counts():
    lost = forgetting(losses(None, None, agreeing(0.95)), losses(None, None, agreeing(0.7)))
    assert lost.measure == "agreement"
    assert lost.excess.value == pytest.approx(0.25, abs=0.1)
    assert lost.is_clear


def test_two_measures_are_not_compared():
    assert forgetting(losses(evaluated(0), evaluated(0), None), losses(None, None, agreeing(1))) is None
    assert forgetting(None, losses(None, None, agreeing(1))) is None


def test_the_loss_is_a_log_ratio():
    own = losses(evaluated(0, spread=0), evaluated(math.log(2), spread=0), None)
    assert own.loss(np.arange(ROWS)) == pytest.approx(math.log(2))
