import pytest
import torch

from hf_pe.prune.repair import least_squares
from hf_pe.prune.statistics import Moments


def problem(bias=True, seed=0):
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(6, 6, generator=draw)
    inputs = torch.randn(500, 6, generator=draw) @ mix + 1
    weight = torch.randn(4, 6, generator=draw)
    moments = Moments(inputs.T @ inputs / 500, inputs.mean(0))
    return inputs, weight, torch.randn(4, generator=draw) if bias else None, moments


@pytest.mark.parametrize("bias", [True, False])
def test_it_beats_leaving_the_weights_alone_and_matches_lstsq(bias):
    inputs, weight, offset, moments = problem(bias)
    kept = torch.tensor([0, 2, 3, 5])
    wanted = inputs @ weight.T + (offset if bias else 0)
    new, shifted = least_squares(weight, offset, moments, kept, 1e-9)
    got = inputs[:, kept] @ new.T + (shifted if bias else 0)
    plain = inputs[:, kept] @ weight[:, kept].T + (offset if bias else 0)
    design = torch.cat([inputs[:, kept], torch.ones(500, 1)], 1) if bias else inputs[:, kept]
    best = design @ torch.linalg.lstsq(design, wanted).solution
    assert (got - wanted).square().mean() < 0.9 * (plain - wanted).square().mean()
    assert torch.allclose(got, best, atol=1e-3)


def test_a_large_ridge_leaves_the_weights_alone():
    _, weight, _, moments = problem(False)
    kept = torch.tensor([1, 4])
    new, _ = least_squares(weight, None, moments, kept, 1e12)
    assert torch.allclose(new, weight[:, kept], atol=1e-5)


def test_keeping_all_changes_nothing():
    _, weight, offset, moments = problem()
    new, shifted = least_squares(weight, offset, moments, torch.arange(6), 0.01)
    assert torch.allclose(new, weight, atol=1e-5)
    assert torch.allclose(shifted, offset, atol=1e-5)
