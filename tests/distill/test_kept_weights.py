"""Which weights are kept, and that they come back as they were."""

import numpy as np
import pytest
import torch
from torch import nn

from hf_pe.distill.kept_weights import FILE, KeptWeights, Score
from hf_pe.tasks import EvalResult


def score(right, *, higher=True):
    result = EvalResult({"right": np.asarray(right, float)}, lambda columns: {"m": float(columns["right"].mean())})
    return Score.of(result, "m", higher_is_better=higher)


def flips(count, first=0, size=200):
    """Rows that are all right but for `count` from the first one on."""
    return [0.0 if first <= row < first + count else 1.0 for row in range(size)]


def test_chance_in_a_few_rows_does_not_decide_and_a_real_loss_does():
    best = score(flips(20))
    assert score(flips(22, first=10)).is_as_good_as(best)
    assert not score(flips(22, first=10)).exceeds(best)
    assert not score(flips(40)).is_as_good_as(best)
    assert score(flips(19)).exceeds(best)


def test_where_lower_is_better_the_lower_score_exceeds():
    low, high = score(flips(100), higher=False), score(flips(20), higher=False)
    assert low.exceeds(high) and not high.is_as_good_as(low)


def test_a_score_that_is_no_number_is_never_kept_beside_one_that_is():
    none, some = score([float("nan")] * 40), score(flips(20))
    assert not none.exceeds(some) and not none.is_as_good_as(some)
    assert some.exceeds(none) and some.is_as_good_as(none)
    assert not none.exceeds(none) and not none.is_as_good_as(none)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.layer = nn.Linear(4, 4)
        self.tied = self.layer
        self.norm = nn.BatchNorm1d(4)


@pytest.fixture
def net():
    return Net()


def test_what_training_changes_comes_back_and_the_rest_is_not_stored(net, tmp_path):
    kept = KeptWeights(tmp_path / "new")
    assert kept.fits(net)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    kept.save(net)
    for name, tensor in net.state_dict().items():
        if not name.startswith("frozen"):
            tensor.add_(1)
    kept.load_(net)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    stored = torch.load(kept.file, weights_only=True)
    assert not any(name.startswith(("frozen", "tied")) for name in stored)
    assert {"norm.running_mean", "layer.weight"} <= stored.keys()
    assert [file.name for file in kept.folder.iterdir()] == [FILE]


def test_a_checkpoint_has_the_weights_of_its_time(net, tmp_path):
    kept, checkpoint = KeptWeights(tmp_path / "kept"), tmp_path / "checkpoint"
    checkpoint.mkdir()
    kept.link(checkpoint)
    assert not list(checkpoint.iterdir())  # nothing was kept so far
    kept.fits(net)
    kept.save(net)
    kept.link(checkpoint)
    early = net.layer.weight.detach().clone()
    net.layer.weight.data.add_(1)
    kept.save(net)
    kept.take_from(checkpoint)
    kept.load_(net)
    assert torch.equal(net.layer.weight, early)


def test_weights_that_the_disk_cannot_hold_are_not_kept(net, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("hf_pe.distill.kept_weights.shutil.disk_usage", lambda path: usage)
    assert not KeptWeights(tmp_path).fits(net)
