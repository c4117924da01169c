"""A random body is fitted in closed form: what is linear is found, and what is wanted of it comes out."""

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
from hf_pe.backbones.bottleneck_init import Bottleneck, _Fitting, bottlenecks, grow_, kernels_
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
ROWS, WIDTH, PLACES = 160, 24, (64, 4, 4)


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
    ("config", "count", "added"),
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
def test_linear_bottlenecks_are_found_and_which_of_them_are_added_to(config, count, added):
    model = body(config)
    found, largest = bottlenecks(model, {"pixel_values": torch.randn(2, 3, 32, 32)})
    assert (len(found), sum(each.block is not None for each in found)) == (count, added)
    names = {module: name for name, module in model.named_modules()}
    order = [list(names).index(each.conv) for each in found]
    assert order == sorted(order) and largest > 3 * 32 * 32
    assert all(names[each.norm].rpartition(".")[0] == names[each.conv].rpartition(".")[0] for each in found)


def bottleneck(width, block=None):
    return Bottleneck(nn.Conv2d(WIDTH, width, 1, bias=False), nn.BatchNorm2d(width).train(), block, PLACES[1:])


def explained(given, wanted):
    """Share of the variance of maps that a linear map of others gives."""
    x, y = (m.movedim(1, -1).flatten(0, 2).double() for m in (given, wanted))
    x, y = x - x.mean(0), y - y.mean(0)
    return 1 - float((y - x @ torch.linalg.lstsq(x, y).solution).square().sum() / y.square().sum())


@torch.no_grad()
def test_a_bottleneck_keeps_the_directions_that_tell_what_is_wanted():
    torch.manual_seed(1)
    maps = torch.randn(PLACES[0], WIDTH, *PLACES[1:])
    wanted = torch.einsum("bchw,cr,ro->bohw", maps, torch.randn(WIDTH, 3), torch.randn(3, 10)) + 1
    at = bottleneck(3)
    assert explained(at.conv(maps), wanted) < 0.9
    _Fitting({0: wanted}).fit_(0, at, at.conv, (maps,))
    assert explained(at.conv(maps), wanted) > 0.999
    wider = bottleneck(16)
    _Fitting({0: wanted}).fit_(0, wider, wider.conv, (maps,))
    assert explained(wider.conv(maps), wanted) > 0.999
    assert torch.linalg.matrix_rank(wider.conv.weight[:, :, 0, 0]) == 16, "more channels than are wanted tell more"


@torch.no_grad()
def test_what_is_added_to_gives_what_is_missing():
    torch.manual_seed(2)
    maps, more = (torch.randn(PLACES[0], WIDTH, *PLACES[1:]) for _ in range(2))
    wanted = torch.einsum("bchw,co->bohw", maps, torch.randn(WIDTH, 6))
    wanted = wanted + torch.einsum("bchw,co->bohw", more, torch.randn(WIDTH, 6))
    first, then = bottleneck(6), bottleneck(6, nn.Identity())
    fitting = _Fitting({0: wanted})
    fitting.fit_(0, first, first.conv, (maps,))
    begun = first.norm(first.conv(maps))
    fitting.keep(1, then.block, (begun,))
    fitting.fit_(1, then, then.conv, (more,))
    left = begun + then.norm(then.conv(more))
    assert explained(begun, wanted) < 0.7 and explained(left, wanted) > 0.9
    assert not fitting.wanted and not fitting.added, "nothing is held longer than it is needed"


@torch.no_grad()
def test_kernels_see_blobs_edges_and_points():
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3, groups=64), nn.Conv2d(64, 64, 5, groups=64), nn.Conv2d(64, 8, 3)
    )
    plain = model[3].weight.clone()
    kernels_(model, torch.Generator().manual_seed(0))
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
def test_a_fitted_body_tells_more_of_the_originals_last_map_than_a_random_one(original, config, smooth):
    old, random, new = original(), body(config), body(config)
    kept = state_of(old)
    assert grow_(old, new, smooth) > 5
    assert all(torch.equal(tensor, kept[name]) for name, tensor in old.state_dict().items())
    batch = smooth.collate([smooth.train[i] for i in range(ROWS)])
    wanted = as_map(old(**batch, output_hidden_states=True).hidden_states[-1])
    told = []
    for model in (random, new):
        last = bottlenecks(model, batch)[0][-1]
        for each in model.modules():
            if isinstance(each, nn.BatchNorm2d):
                each.train()
        seen = []
        last.norm.register_forward_hook(lambda module, given, out, seen=seen: seen.append(out))
        model(**batch)
        told.append(explained(seen[0], nn.functional.adaptive_avg_pool2d(wanted, seen[0].shape[2:])))
    assert told[1] > told[0] + 0.05


def test_fitting_is_repeatable_and_its_seed_draws_the_kernels(smooth):
    one, again, other = (body(MobileNetV2Config(depth_multiplier=0.35)) for _ in range(3))
    for model, seed in ((one, 3), (again, 3), (other, 4)):
        grow_(vit(), model, smooth, seed)
    kernel = [m.mobilenet_v2.layer[3].conv_3x3.convolution.weight for m in (one, again, other)]
    assert torch.equal(kernel[0], kernel[1]) and not torch.equal(kernel[0], kernel[2])
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(("config", "rows"), [(PLAIN, ROWS), (MOBILE, 31)], ids=["no bottlenecks", "few images"])
def test_a_body_that_cannot_be_fitted_stays_as_it_was(config, rows, smooth):
    model = body(config)
    kept = state_of(model)
    assert grow_(vit(), model, replace(smooth, train=smooth.train.select(range(rows)))) == 0
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_channels_of_which_nothing_is_wanted_give_nothing_and_may_learn():
    maps = torch.randn(PLACES[0], WIDTH, *PLACES[1:])
    wanted, at = maps[:, :2], bottleneck(6, nn.Identity())
    fitting = _Fitting({})
    fitting.left, fitting.added = wanted.movedim(1, -1).flatten(0, 2), {1: torch.zeros(PLACES[0], 6, *PLACES[1:])}
    fitting.fit_(1, at, at.conv, (maps,))
    given = at.norm(at.conv(maps))
    assert explained(given[:, :2], wanted) > 0.99 and not given[:, 2:].any()
    assert at.conv.weight[2:].any(), "or no gradient would reach the scale"


@pytest.mark.parametrize(
    ("changes", "said"),
    [({}, True), ({"fit": False}, False), (SMALL_RESNET, True), (LAYERS, False)],
)
def test_a_swap_says_that_a_random_body_is_fitted(changes, said, smooth):
    plan = BackboneSwap(**{"to": "mobilenet_v2_0.35"} | changes).plan(StageState(vit(128), smooth))
    assert ("fitted to" in " ".join(plan.notes)) == said
