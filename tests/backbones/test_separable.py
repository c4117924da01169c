"""Convolutions rewritten as depthwise and pointwise ones: exact where they can be, fitted where not, and they reload."""

import copy
import subprocess
import sys

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    BertForSequenceClassification,
    ConvNextImageProcessorPil,
    ResNetConfig,
    ResNetForImageClassification,
)

from hf_pe import BitsAndBytesQuantization, Distillation, StructuredPruning, compress
from hf_pe.anatomy import Separable, discover, form_of
from hf_pe.backbones import BackboneSwap, SeparableConvolutions
from hf_pe.data import DataConfig
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.dummies.tiny import lively
from hf_pe.errors import UsageError
from hf_pe.measure import flops, parameters
from hf_pe.model_spec import ModelSpec
from hf_pe.plans import Plan
from hf_pe.recipe import StageState
from tests.helpers import bert_config, taught
from tests.images import NAMES


def resnet(**changes):
    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2], "layer_type": "basic"}
    labels = {"id2label": NAMES, "label2id": {v: k for k, v in NAMES.items()}}
    return lively(ResNetForImageClassification(ResNetConfig(**sizes | labels | changes)), 2).eval()


def rewritten(recipe, model, data):
    return recipe.carry_out(StageState(model, data)).model


def made_separable_(model, names):
    """Kernels that a depthwise and a pointwise convolution can say exactly."""
    for name in names:
        weight = model.get_submodule(name).weight
        spatial = torch.randn(1, *weight.shape[1:])
        weight.data = torch.randn(*weight.shape[:2], 1, 1) * spatial * weight[0].numel() ** -0.5


def test_what_is_separable_already_stays_what_it_was(images):
    model = resnet()
    recipe = SeparableConvolutions()
    names = recipe._names(ModelSpec(model.config, type(model)))
    made_separable_(model, names)
    plan = recipe.plan(StageState(model, images))
    new = recipe.apply(StageState(model, images), plan).model
    inputs = {"pixel_values": torch.tensor(images.train[:8]["pixel_values"])}
    assert difference(outputs_of(model, inputs), outputs_of(new, inputs)) < 1e-3
    assert list(plan.form.separable) == [n for n, m in new.named_modules() if isinstance(m, Separable)]
    assert len(plan.form.separable) == len(names) >= 5


def test_sizes_are_exact_the_original_stays_and_errors_are_told(images):
    model = resnet()
    kept = copy.deepcopy(model.state_dict())
    recipe = SeparableConvolutions()
    outlined, after = recipe.dry_run(ModelSpec(model.config, type(model)))
    plan = recipe.plan(StageState(model, images))
    new = recipe.apply(StageState(model, images), plan).model
    assert outlined.parameters == plan.parameters == parameters(new).total < parameters(model).total
    assert flops(after.config, type(model)) < flops(model.config, type(model))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    assert form_of(model.config) is None
    told = [note for note in plan.notes if "variance lost" in note]
    assert len(told) == len(plan.form.separable)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    again = recipe.apply(StageState(model, images), plan).model  # nothing remembered
    assert all(torch.equal(one, other) for one, other in zip(new.parameters(), again.parameters(), strict=True))


def lost(plan):
    return [float(n.partition(": ")[2].partition("%")[0]) for n in plan.notes if "variance lost" in n]


def test_a_higher_rank_loses_less_and_layers_that_lose_too_much_stay(images):
    model = resnet()
    one, two = (SeparableConvolutions(rank=rank).plan(StageState(model, images)) for rank in (1, 3))
    assert sum(lost(two)) / len(lost(two)) < sum(lost(one)) / len(lost(one))
    bound = sorted(lost(one))[len(lost(one)) // 2] / 100
    some = SeparableConvolutions(error=bound)
    plan = some.plan(StageState(model, images))
    assert 0 < len(plan.form.separable) < len(one.form.separable)
    new = some.apply(StageState(model, images), plan).model
    plain = [
        n for n, m in new.named_modules() if type(m) is nn.Conv2d and "pointwise" not in n and "depthwise" not in n
    ]
    assert any("stays as it is" in note and note.partition(":")[0] in plain for note in plan.notes)
    with pytest.raises(UsageError, match="every convolution would lose more than 0%"):
        SeparableConvolutions(error=1e-6).plan(StageState(model, images))


def test_fitting_to_data_beats_factors_of_the_weights_alone(images):
    model = taught(resnet(), images)
    new = rewritten(SeparableConvolutions(), model, images)
    plain = copy.deepcopy(model)
    for name in form_of(new.config).separable:
        conv = plain.get_submodule(name)
        made = Separable(conv, 1)
        kernels = conv.weight.flatten(2).movedim(1, 0)
        u, s, v = torch.linalg.svd(kernels, full_matrices=False)
        made.depthwise.weight.data = v[:, :1].reshape(made.depthwise.weight.shape)
        made.pointwise.weight.data = (u[..., 0] * s[:, :1]).T.reshape(made.pointwise.weight.shape)
        plain.set_submodule(name, made)
    inputs = {"pixel_values": torch.tensor(images.train["pixel_values"][:])}
    wanted = outputs_of(model, inputs)[-1]
    ours, theirs = (float((outputs_of(m, inputs)[-1] - wanted).square().mean()) for m in (new, plain.eval()))
    assert ours < theirs / 2


def test_it_reloads_after_one_import_and_is_missed_without(images, tmp_path):
    new = rewritten(SeparableConvolutions(), resnet(), images)
    new.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    inputs = {"pixel_values": torch.tensor(images.train[:4]["pixel_values"])}
    assert difference(outputs_of(new, inputs), outputs_of(again, inputs)) == 0
    assert again.hf_quantizer.is_compileable and not any(p.is_meta for p in again.parameters())
    again.half().float().save_pretrained(tmp_path / "twice")
    assert form_of(AutoModelForImageClassification.from_pretrained(tmp_path / "twice").config) == form_of(new.config)
    program = "import sys, transformers; transformers.AutoModelForImageClassification.from_pretrained(sys.argv[1])"
    done = subprocess.run([sys.executable, "-P", "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert "Unknown quantization type, got hf_pe" in done.stderr and "MISSING" in done.stderr


def test_it_is_taught_by_the_original_and_the_folder_proves_itself(images, tmp_path):
    for name, red in zip(NAMES.values(), (20, 120, 220), strict=True):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (32, 32), (red + number, 50, 50)).save(tmp_path / "data" / name / f"{number}.png")
    result = compress(
        taught(resnet(), images),
        [SeparableConvolutions(), Distillation(steps=4, batch_size=8)],
        data=DataConfig(train=str(tmp_path / "data"), image="image", label="label"),
        task="image_classification",
        processor=ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=1.0),
    )
    saved = result.save(tmp_path / "small")
    assert saved.report.reload.status == "plug-in"
    card = (tmp_path / "small" / "README.md").read_text()
    assert "import hf_pe.plugin" in card and "teaches transformers the form" in card


@pytest.mark.parametrize(
    ("after", "name"),
    [
        (StructuredPruning(keep={"layers": 1}), "prune"),
        (BackboneSwap(to="mobilenet_v2_0.35"), "swap"),
        (BitsAndBytesQuantization(), "quantize"),
        (SeparableConvolutions(), "separate"),
    ],
)
def test_what_needs_a_stock_model_is_refused_afterwards(after, name):
    from hf_pe.run.dry_run import dry_run

    model = resnet()
    with pytest.raises(UsageError, match=rf"{name}: "):
        dry_run(ModelSpec(model.config, type(model)), [SeparableConvolutions(), after], {})


def test_a_model_without_plain_convolutions_is_refused():
    with pytest.raises(UsageError, match="has no plain convolution"):
        SeparableConvolutions().dry_run(ModelSpec(bert_config(), BertForSequenceClassification))
    assert discover(bert_config(), BertForSequenceClassification).axes
