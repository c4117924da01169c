"""A random body is fitted in closed form: its linear bottlenecks explain the feature maps of the original."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    EfficientNetConfig,
    MobileNetV1Config,
    MobileNetV2Config,
    MobileViTConfig,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_pe.backbones import BackboneSwap
from hf_pe.backbones.bottleneck_init import (
    Bottleneck,
    _Fitting,
    bottlenecks,
    initialize_bottlenecks_,
    initialize_kernels_,
)
from hf_pe.checkpoints.classes import class_for
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.recipe import StageState
from hf_pe.tasks import ImageClassification, as_map
from hf_pe.weight_transfer import random_init
from tests.images import of_rows

SMALL_RESNET = {"to": "resnet", "config": {"depths": [1, 1], "hidden_sizes": [8, 16], "layer_type": "basic"}}
PLAIN = ResNetConfig(depths=[1, 1], hidden_sizes=[8, 16], embedding_size=8, layer_type="basic")
MOBILE = MobileNetV2Config(depth_multiplier=0.35, output_stride=8)
EFFICIENT = EfficientNetConfig(
    width_coefficient=0.5, depth_coefficient=0.3, hidden_dim=640, strides=[1, 1, 1, 2, 1, 2, 1]
)
LAYERS = {"to": None, "config": {"num_hidden_layers": 1}}
ROWS, WIDTH, SHAPE = 160, 24, (64, 4, 4)


def body(config, **changes):
    for name, value in {"image_size": 32, "num_labels": 3, **changes}.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    return random_init(class_for(config, "AutoModelForImageClassification"), config).eval()


@pytest.fixture(scope="module")
def smooth():
    torch.manual_seed(0)
    pixels = nn.functional.interpolate(torch.randn(ROWS, 3, 5, 5), (32, 32), mode="bicubic")
    return of_rows(ImageClassification(), {"pixel_values": pixels.numpy()})


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("config", "count", "shortcuts"),
    [
        (MobileNetV2Config(depth_multiplier=0.35), 17, 10),
        (EfficientNetConfig(width_coefficient=0.5, depth_coefficient=0.3, hidden_dim=640), 8, 1),
        (MobileViTConfig(), 7, 2),
        (ResNetConfig(depths=[1, 1], hidden_sizes=[16, 32]), 0, 0),
        (ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[16, 16, 32, 32]), 0, 0),
        (MobileNetV1Config(depth_multiplier=0.25), 0, 0),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_linear_bottlenecks_are_listed_with_their_shortcuts(config, count, shortcuts):
    model = body(config)
    listed, largest = bottlenecks(model, {"pixel_values": torch.randn(2, 3, 32, 32)})
    assert (len(listed), sum(each.block is not None for each in listed)) == (count, shortcuts)
    names = {module: name for name, module in model.named_modules()}
    order = [list(names).index(each.conv) for each in listed]
    assert order == sorted(order) and largest > 3 * 32 * 32
    assert all(names[each.norm].rpartition(".")[0] == names[each.conv].rpartition(".")[0] for each in listed)


def bottleneck(width, block=None):
    return Bottleneck(nn.Conv2d(WIDTH, width, 1, bias=False), nn.BatchNorm2d(width).train(), block, SHAPE[1:])


def explained(maps, target):
    """Return the fraction of the variance of `target` that a linear layer on `maps` can explain."""
    x, y = (m.movedim(1, -1).flatten(0, 2).double() for m in (maps, target))
    x, y = x - x.mean(0), y - y.mean(0)
    return 1 - float((y - x @ torch.linalg.lstsq(x, y).solution).square().sum() / y.square().sum())


@torch.no_grad()
def test_a_bottleneck_keeps_the_directions_that_explain_its_target():
    torch.manual_seed(1)
    maps = torch.randn(SHAPE[0], WIDTH, *SHAPE[1:])
    target = torch.einsum("bchw,cr,ro->bohw", maps, torch.randn(WIDTH, 3), torch.randn(3, 10)) + 1
    at = bottleneck(3)
    assert explained(at.conv(maps), target) < 0.9
    _Fitting({0: target}).fit_(0, at, at.conv, (maps,))
    assert explained(at.conv(maps), target) > 0.999
    wider = bottleneck(16)
    _Fitting({0: target}).fit_(0, wider, wider.conv, (maps,))
    assert explained(wider.conv(maps), target) > 0.999
    assert torch.linalg.matrix_rank(wider.conv.weight[:, :, 0, 0]) == 16, (
        "further channels have directions of their own"
    )


@torch.no_grad()
def test_a_bottleneck_with_a_shortcut_is_fitted_to_the_residual():
    torch.manual_seed(2)
    maps, more = (torch.randn(SHAPE[0], WIDTH, *SHAPE[1:]) for _ in range(2))
    target = torch.einsum("bchw,co->bohw", maps, torch.randn(WIDTH, 6))
    target = target + torch.einsum("bchw,co->bohw", more, torch.randn(WIDTH, 6))
    first, then = bottleneck(6), bottleneck(6, nn.Identity())
    fitting = _Fitting({0: target})
    fitting.fit_(0, first, first.conv, (maps,))
    output = first.norm(first.conv(maps))
    fitting.keep_shortcut(1, then.block, (output,))
    fitting.fit_(1, then, then.conv, (more,))
    total = output + then.norm(then.conv(more))
    assert explained(output, target) < 0.7 and explained(total, target) > 0.9
    assert not fitting.targets and not fitting.shortcuts, "tensors are kept no longer than they are needed"


@torch.no_grad()
def test_kernels_see_blobs_edges_and_points():
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3, groups=64), nn.Conv2d(64, 64, 5, groups=64), nn.Conv2d(64, 8, 3)
    )
    plain = model[3].weight.clone()
    initialize_kernels_(model, torch.Generator().manual_seed(0))
    assert torch.equal(model[3].weight, plain)
    for conv in model[:3]:
        assert torch.allclose(conv.weight.flatten(1).norm(dim=1), torch.ones(64))
        among = conv.weight.flatten(2).norm(dim=2)[:, :, None, None]
        shapes = (conv.weight / among).abs().round(decimals=3).flatten(0, 1).flatten(1).unique(dim=0)
        assert len(shapes) == 4
        assert sorted(int((shape > 1e-3).sum()) for shape in shapes)[0] == 1, "the identity is a point"


def vit(width=32):
    sizes = {"hidden_size": width, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 4 * width}
    return randomize_weights_(
        ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=3, **sizes)), 0
    ).eval()


def resnet():
    config = ResNetConfig(num_labels=3, depths=[1, 1], hidden_sizes=[16, 32], embedding_size=8, layer_type="basic")
    return randomize_weights_(ResNetForImageClassification(config), 0).eval()


@pytest.mark.parametrize("original", [vit, resnet])
@pytest.mark.parametrize("config", [MOBILE, EFFICIENT], ids=lambda value: value.model_type)
@torch.no_grad()
def test_a_fitted_body_explains_more_of_the_originals_last_map_than_a_random_one(original, config, smooth):
    old, random, new = original(), body(config), body(config)
    kept = state_of(old)
    assert initialize_bottlenecks_(old, new, smooth) > 5
    assert all(torch.equal(tensor, kept[name]) for name, tensor in old.state_dict().items())
    batch = smooth.collate([smooth.train[i] for i in range(ROWS)])
    target = as_map(old(**batch, output_hidden_states=True).hidden_states[-1])
    fractions = []
    for model in (random, new):
        last = bottlenecks(model, batch)[0][-1]
        for each in model.modules():
            if isinstance(each, nn.BatchNorm2d):
                each.train()
        outputs = []
        last.norm.register_forward_hook(lambda module, inputs, out, outputs=outputs: outputs.append(out))
        model(**batch)
        fractions.append(explained(outputs[0], nn.functional.adaptive_avg_pool2d(target, outputs[0].shape[2:])))
    assert fractions[1] > fractions[0] + 0.05


def test_fitting_is_repeatable_and_its_seed_draws_the_kernels(smooth):
    first, same, different = (body(MobileNetV2Config(depth_multiplier=0.35)) for _ in range(3))
    for model, seed in ((first, 3), (same, 3), (different, 4)):
        initialize_bottlenecks_(vit(), model, smooth, seed)
    kernel = [m.mobilenet_v2.layer[3].conv_3x3.convolution.weight for m in (first, same, different)]
    assert torch.equal(kernel[0], kernel[1]) and not torch.equal(kernel[0], kernel[2])
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))


@pytest.mark.parametrize(("config", "rows"), [(PLAIN, ROWS), (MOBILE, 31)], ids=["no bottlenecks", "few images"])
def test_a_body_that_cannot_be_fitted_stays_as_it_was(config, rows, smooth):
    model = body(config)
    kept = state_of(model)
    assert initialize_bottlenecks_(vit(), model, replace(smooth, train=smooth.train.select(range(rows)))) == 0
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_channels_without_a_target_add_nothing_and_may_learn():
    maps = torch.randn(SHAPE[0], WIDTH, *SHAPE[1:])
    target, at = maps[:, :2], bottleneck(6, nn.Identity())
    fitting = _Fitting({})
    fitting.residual, fitting.shortcuts = target.movedim(1, -1).flatten(0, 2), {1: torch.zeros(SHAPE[0], 6, *SHAPE[1:])}
    fitting.fit_(1, at, at.conv, (maps,))
    output = at.norm(at.conv(maps))
    assert explained(output[:, :2], target) > 0.99 and not output[:, 2:].any()
    assert at.conv.weight[2:].any(), "or no gradient would reach the scale"


@pytest.mark.parametrize(
    ("changes", "is_noted"),
    [({}, True), ({"fit": False}, False), (SMALL_RESNET, True), (LAYERS, False)],
)
def test_a_swap_notes_that_a_random_body_is_fitted(changes, is_noted, smooth):
    plan = BackboneSwap(**{"to": "mobilenet_v2_0.35"} | changes).plan(StageState(vit(128), smooth))
    assert ("fitted to" in " ".join(plan.notes)) == is_noted
