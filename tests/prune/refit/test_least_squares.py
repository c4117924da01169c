import pytest
import torch

from hf_pe.prune.refit.least_squares import without_removed
from hf_pe.regression import Moments


def problem(bias=True, seed=0, count=500):
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(6, 6, generator=draw)
    inputs = torch.randn(count, 6, generator=draw) @ mix + 1
    weight = torch.randn(4, 6, generator=draw)
    half = count // 2
    folds = [Moments.of(inputs[:half]), Moments.of(inputs[half:])]
    return inputs, weight, torch.randn(4, generator=draw) if bias else None, folds


@pytest.mark.parametrize("bias", [True, False])
def test_it_beats_leaving_the_weights_alone_and_nears_lstsq(bias):
    inputs, weight, offset, folds = problem(bias)
    kept = torch.tensor([0, 2, 3, 5])
    target = inputs @ weight.T + (offset if bias else 0)
    new, shifted = without_removed(weight, offset, folds, kept)
    got = inputs[:, kept] @ new.T + (shifted if bias else 0)
    plain = inputs[:, kept] @ weight[:, kept].T + (offset if bias else 0)
    design = torch.cat([inputs[:, kept], torch.ones(500, 1)], 1) if bias else inputs[:, kept]
    best = design @ torch.linalg.lstsq(design, target).solution
    assert (got - target).square().mean() < 0.9 * (plain - target).square().mean()
    assert (got - target).square().mean() < 1.01 * (best - target).square().mean()


@pytest.mark.parametrize("bias", [True, False])
def test_without_a_ridge_it_matches_lstsq(monkeypatch, bias):
    monkeypatch.setattr("hf_pe.regression.RIDGES", (1e-9,))
    inputs, weight, offset, folds = problem(bias)
    kept = torch.tensor([0, 2, 3, 5])
    new, shifted = without_removed(weight, offset, folds, kept)
    got = inputs[:, kept] @ new.T + (shifted if bias else 0)
    design = torch.cat([inputs[:, kept], torch.ones(500, 1)], 1) if bias else inputs[:, kept]
    best = design @ torch.linalg.lstsq(design, inputs @ weight.T + (offset if bias else 0)).solution
    assert torch.allclose(got, best, atol=1e-3)


def test_a_large_ridge_leaves_the_weights_alone(monkeypatch):
    monkeypatch.setattr("hf_pe.regression.RIDGES", (1e12,))
    _, weight, _, folds = problem(False)
    kept = torch.tensor([1, 4])
    new, _ = without_removed(weight, None, folds, kept)
    assert torch.allclose(new, weight[:, kept], atol=1e-5)


def test_keeping_all_changes_nothing():
    _, weight, offset, folds = problem()
    new, shifted = without_removed(weight, offset, folds, torch.arange(6))
    assert torch.allclose(new, weight, atol=1e-5)
    assert torch.allclose(shifted, offset, atol=1e-5)
