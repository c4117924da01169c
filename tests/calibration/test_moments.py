import pytest
import torch

from hf_pe.calibration import direction_weight

WIDTH = 64


@pytest.fixture
def states():
    draw = torch.Generator().manual_seed(0)
    return torch.randn(5, 7, WIDTH, generator=draw), torch.randn(5, 7, WIDTH, generator=draw)


def test_an_error_counts_by_how_far_the_state_turns(states):
    before, gives = states
    sine = 1 - torch.cosine_similarity(before, before + gives, dim=-1) ** 2
    weights = direction_weight(before, gives)
    assert weights.shape == (5, 7, 1)
    assert torch.allclose(weights[..., 0], sine / gives.square().mean(-1), rtol=1e-3)
    assert torch.allclose(direction_weight(3 * before, 3 * gives), weights / 9, rtol=1e-3)


def test_small_additions_at_right_angles_count_by_the_size_of_the_state(states):
    before, gives = states
    across = gives - (gives * before).sum(-1, keepdim=True) / before.square().sum(-1, keepdim=True) * before
    weights = direction_weight(before, 1e-3 * across)
    assert torch.allclose(weights, 1 / before.square().mean(-1, keepdim=True), rtol=1e-3)


def test_a_huge_token_that_goes_on_as_it_was_counts_little(states):
    before, gives = states
    assert (direction_weight(before, 100 * before + gives) < 1e-3 * direction_weight(before, gives)).all()


def test_a_map_that_gives_nothing_counts_something_finite(states):
    before, _ = states
    for weights in (
        direction_weight(before, torch.zeros_like(before)),
        direction_weight(torch.zeros_like(before), before),
    ):
        assert torch.isfinite(weights).all()
        assert (weights > 0).all()
