"""A stitching layer fits, folds without a rest, and says where features do not stand at the same places."""

from dataclasses import replace

import datasets
import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, default_data_collator

from hf_pe.data import DataConfig, Examples
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import UsageError
from hf_pe.regression import Fit
from hf_pe.stitching import (
    StitchingLayer,
    StitchPoint,
    fit_stitching_layer,
    merge_,
    read_by,
    remove_stitching_,
    reuse_,
    stitched_features,
)
from hf_pe.tasks import ImageClassification, TaskData


def vit(width=32, seed=0, **changes):
    sizes = {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "image_size": 8,
        "patch_size": 4,
    }
    config = ViTConfig(hidden_size=width, num_labels=5, hidden_dropout_prob=0.0, **sizes | changes)
    return randomize_weights_(ViTForImageClassification(config), seed).eval()


@pytest.fixture
def data():
    draw = torch.Generator().manual_seed(0)
    rows = {"pixel_values": torch.randn(160, 3, 8, 8, generator=draw).numpy(), "labels": [i % 5 for i in range(160)]}
    dataset = datasets.Dataset.from_dict(rows)
    examples = Examples(dataset, dataset, DataConfig(train="x", calibration=160), "")
    return TaskData(ImageClassification(), None, dataset, dataset, default_data_collator, examples)


SEAM = StitchPoint("classifier", "classifier")


def logits(model, data):
    with torch.no_grad():
        return torch.cat([data.task.signals(model, batch)["logits"] for batch in data.batches(data.train)])


def test_the_same_body_needs_no_bridge(data):
    old = vit()
    stitching = fit_stitching_layer(old, vit(), SEAM, data)
    assert stitching.explained > 0.999
    new = vit()
    nn.init.normal_(new.classifier.weight)
    merge_(old.classifier, new.classifier, stitching)
    torch.testing.assert_close(logits(new, data), logits(old, data), rtol=1e-2, atol=1e-2)


def test_a_merged_stitching_layer_is_the_head_behind_it(data):
    old, new = vit(), vit(16, seed=1)
    stitching = fit_stitching_layer(old, new, SEAM, data)
    assert stitching.explained < 1
    merge_(old.classifier, new.classifier, stitching)
    batch = next(data.batches(data.train, 8))
    with torch.no_grad(), read_by(new.classifier) as features:
        logits = data.task.signals(new, batch)["logits"]
    expected = old.classifier(features[0] @ stitching.fit.move + stitching.fit.shift)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [1, 3])
def test_it_merges_into_a_convolution(kernel):
    old, new = nn.Conv2d(6, 4, kernel, padding=kernel // 2), nn.Conv2d(3, 4, kernel, padding=kernel // 2)
    move = torch.randn(3, 6)
    merge_(old, new, StitchingLayer(Fit(move, torch.zeros(6), 0.0), 1.0))
    x = torch.randn(2, 3, 5, 5)
    expected = old(torch.einsum("bchw,cd->bdhw", x, move))
    torch.testing.assert_close(new(x), expected, rtol=1e-4, atol=1e-4)


def test_a_reused_head_learns_its_bridge_only_and_folds_into_a_plain_one(data):
    old, new = vit(), vit(16, seed=1)
    reuse_(old, new, SEAM, data)
    assert sorted(p.shape for p in new.classifier.parameters()) == [(32,), (32, 16)]
    batch = next(data.batches(data.train, 8))
    with read_by(new.classifier) as features:
        loss = data.task.signals(new, batch)["loss"]
    torch.testing.assert_close(
        new.classifier(features[0]), old.classifier(stitched_features(new.classifier, features[0]))
    )
    loss.backward()
    before = logits(new, data)
    remove_stitching_(new.classifier)
    assert {name for name, _ in new.classifier.named_parameters()} == {"weight", "bias"}
    torch.testing.assert_close(logits(new, data), before)


def test_features_at_other_places_are_refused(data):
    old, new = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, stride=2)

    def model(first):
        return nn.Sequential(first, nn.Conv2d(4, 2, 1))

    one, other = (_Reading(model(first)) for first in (old, new))
    with pytest.raises(UsageError, match="expected 6 x 6 as the original has, got 3 x 3"):
        fit_stitching_layer(one, other, StitchPoint("net.1", "net.1"), replace(data, collate=default_data_collator))


class _Reading(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.device, self.dtype = net, torch.device("cpu"), torch.float32

    def forward(self, pixel_values):
        return self.net(pixel_values)
