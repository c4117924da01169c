"""Hidden states as maps: the patches of an image where they lie, and nothing where there are none."""

import pytest
import torch

from hf_pe.tasks import as_map

MAP = torch.arange(2 * 5 * 4 * 4.0).reshape(2, 5, 4, 4)


@pytest.mark.parametrize("before", [0, 1, 5])
def test_tokens_become_a_map_of_the_patches_behind_classes_and_registers(before):
    tokens = MAP.flatten(2).mT
    states = torch.cat([torch.full((2, before, 5), -1.0), tokens], 1)
    assert torch.equal(as_map(states), MAP)


def test_maps_stay_and_channels_come_first():
    assert as_map(MAP) is MAP
    assert torch.equal(as_map(MAP.movedim(1, -1)), MAP)


@pytest.mark.parametrize("shape", [(2, 15, 5), (2, 5), (2, 10, 5, 4, 4)])
def test_what_is_no_map_is_none(shape):
    """Of 15 tokens 9 would be a square, and 6 more than stand before patches."""
    assert as_map(torch.zeros(shape)) is None
