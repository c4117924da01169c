"""Outputs that cannot be compared are never called equal."""

import math

import pytest
import torch

from hf_pe.instance import difference

ONES = torch.ones(2, 3)


def with_value(value: float) -> torch.Tensor:
    changed = ONES.clone()
    changed[1, 2] = value
    return changed


def test_the_difference_is_the_largest_over_all_outputs():
    assert difference([ONES, ONES], [ONES, ONES]) == 0
    assert difference([2 * ONES, ONES], [2 * ONES, with_value(1.5)]) == pytest.approx(0.5)
    assert difference([torch.zeros(0, 3)], [torch.zeros(0, 3)]) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_not_finite_in_any_output_is_not_equal(value, place):
    changed = [with_value(value) if number == place else ONES for number in range(3)]
    assert math.isnan(difference([ONES] * 3, changed))
    assert math.isnan(difference(changed, [ONES] * 3))


def test_nan_at_the_same_places_is_not_equal():
    assert math.isnan(difference([ONES, with_value(math.nan)], [ONES, with_value(math.nan)]))


def test_logits_masked_alike_are_compared_at_the_others():
    masked = with_value(-math.inf)
    assert difference([masked], [masked.clone()]) == 0
    assert difference([masked], [torch.where(masked.isinf(), masked, 1.25)]) == pytest.approx(0.25)
    assert math.isnan(difference([masked], [-masked]))


def test_outputs_of_another_shape_or_number_are_not_equal():
    assert math.isnan(difference([ONES], [ONES[:, :1]]))  # would broadcast
    assert math.isnan(difference([ONES, ONES], [ONES]))
    assert math.isnan(difference([], []))
