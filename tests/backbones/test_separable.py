"""Convolutions rewritten as depthwise and pointwise ones: exact where they can be, fitted where not, and they reload."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    BertForSequenceClassification,
    BitsAndBytesConfig,
    ConvNextImageProcessorPil,
    ResNetConfig,
    ResNetForImageClassification,
)

from hf_pe import BitsAndBytesQuantization, Distillation, StructuredPruning, compress
from hf_pe.anatomy import CustomModules, Separable, built, custom_modules_of, discover, with_custom_modules
from hf_pe.backbones import BackboneSwap, SeparableConvolutions
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.source import resolve
from hf_pe.data import DataConfig
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import UsageError
from hf_pe.measure import flops, parameters
from hf_pe.model_spec import ModelSpec
from hf_pe.plans import Plan
from hf_pe.quantizers.registry import quantized_by
from hf_pe.recipe import StageState
from tests.helpers import bert_config, taught
from tests.images import NAMES


def resnet(**changes):
    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2], "layer_type": "basic"}
    labels = {"id2label": NAMES, "label2id": {v: k for k, v in NAMES.items()}}
    return randomize_weights_(ResNetForImageClassification(ResNetConfig(**sizes | labels | changes)), 2).eval()


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
    assert list(plan.custom_modules.separable) == [n for n, m in new.named_modules() if isinstance(m, Separable)]
    assert len(plan.custom_modules.separable) == len(names) >= 5


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
    assert custom_modules_of(model.config) is None
    notes = [note for note in plan.notes if "variance lost" in note]
    assert len(notes) == len(plan.custom_modules.separable)
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
    assert 0 < len(plan.custom_modules.separable) < len(one.custom_modules.separable)
    new = some.apply(StageState(model, images), plan).model
    plain = [
        n for n, m in new.named_modules() if type(m) is nn.Conv2d and "pointwise" not in n and "depthwise" not in n
    ]
    assert any("not rewritten" in note and note.partition(":")[0] in plain for note in plan.notes)
    with pytest.raises(UsageError, match="every convolution would lose more than 0%"):
        SeparableConvolutions(error=1e-6).plan(StageState(model, images))


def test_fitting_to_data_beats_factors_of_the_weights_alone(images):
    model = taught(resnet(), images)
    new = rewritten(SeparableConvolutions(), model, images)
    plain = copy.deepcopy(model)
    for name in custom_modules_of(new.config).separable:
        conv = plain.get_submodule(name)
        made = Separable(conv, 1)
        kernels = conv.weight.flatten(2).movedim(1, 0)
        u, s, v = torch.linalg.svd(kernels, full_matrices=False)
        made.depthwise.weight.data = v[:, :1].reshape(made.depthwise.weight.shape)
        made.pointwise.weight.data = (u[..., 0] * s[:, :1]).T.reshape(made.pointwise.weight.shape)
        plain.set_submodule(name, made)
    inputs = {"pixel_values": torch.tensor(images.train["pixel_values"][:])}
    expected = outputs_of(model, inputs)[-1]
    ours, theirs = (float((outputs_of(m, inputs)[-1] - expected).square().mean()) for m in (new, plain.eval()))
    assert ours < theirs / 2


@pytest.fixture(scope="module")
def new():
    """A small net with custom modules and random weights; tests leave it as it is."""
    config = resnet().config
    names = SeparableConvolutions()._names(ModelSpec(config, ResNetForImageClassification))
    return randomize_weights_(
        built(
            with_custom_modules(config, CustomModules(separable=dict.fromkeys(names, 1))), ResNetForImageClassification
        )
    )


def test_it_reloads_after_one_import_and_is_missed_without(images, tmp_path):
    new = rewritten(SeparableConvolutions(), resnet(), images)
    new.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    inputs = {"pixel_values": torch.tensor(images.train[:4]["pixel_values"])}
    assert difference(outputs_of(new, inputs), outputs_of(again, inputs)) == 0
    assert not hasattr(again, "hf_quantizer") and not any(p.is_meta for p in again.parameters())
    again.half().float().save_pretrained(tmp_path / "twice")
    assert custom_modules_of(
        AutoModelForImageClassification.from_pretrained(tmp_path / "twice").config
    ) == custom_modules_of(new.config)
    program = "import sys, transformers; transformers.AutoModelForImageClassification.from_pretrained(sys.argv[1])"
    done = subprocess.run([sys.executable, "-P", "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert "MISSING" in done.stderr and "depthwise" in done.stderr


def in_fresh_process(folder, pixels, tmp_path):
    """The logits that plain `from_pretrained` gives after `import hf_pe.plugin`, where hf_pe has done nothing else."""
    torch.save(pixels, tmp_path / "pixels.pt")
    program = (
        "import sys, torch, hf_pe.plugin\n"
        "from transformers import AutoModelForImageClassification\n"
        "model = AutoModelForImageClassification.from_pretrained(sys.argv[1]).eval()\n"
        "with torch.no_grad(): torch.save(model(pixel_values=torch.load(sys.argv[2])).logits, sys.argv[3])"
    )
    out = tmp_path / "logits.pt"
    subprocess.run([sys.executable, "-c", program, str(folder), str(tmp_path / "pixels.pt"), str(out)], check=True)
    return torch.load(out)


def as_an_older_version_wrote_it_(folder):
    """Move the description of custom modules to where it stood before it had a key of its own."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {"quant_method": "hf_pe", **config.pop("hf_pe_modules")}
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("older", [False, True])
def test_a_folder_loads_in_a_fresh_process_after_one_import(new, images, tmp_path, older):
    new.save_pretrained(tmp_path / "model")
    assert "quantization_config" not in json.loads((tmp_path / "model" / "config.json").read_text())
    if older:
        as_an_older_version_wrote_it_(tmp_path / "model")
    pixels = torch.tensor(images.train[:4]["pixel_values"])
    with torch.no_grad():
        logits = new(pixel_values=pixels).logits
    assert difference([logits], [in_fresh_process(tmp_path / "model", pixels, tmp_path)]) == 0


def test_an_older_folder_is_the_same_model_and_is_saved_in_the_new_way(new, images, tmp_path):
    new.save_pretrained(tmp_path / "older")
    as_an_older_version_wrote_it_(tmp_path / "older")
    source = resolve(str(tmp_path / "older"))
    config = load_config(source)
    assert custom_modules_of(config) == custom_modules_of(new.config) and quantized_by(config) is None
    assert flops(config, type(new)) == flops(new.config, type(new))
    again = load_model(source, type(new))
    inputs = {"pixel_values": torch.tensor(images.train[:4]["pixel_values"])}
    assert difference(outputs_of(new, inputs), outputs_of(again, inputs)) == 0
    again.float().save_pretrained(tmp_path / "newer")
    saved = json.loads((tmp_path / "newer" / "config.json").read_text())
    assert saved["hf_pe_modules"] == custom_modules_of(new.config).model_dump() and "quantization_config" not in saved


def test_a_quantizer_may_follow_since_its_place_in_the_config_is_free(new, images, tmp_path):
    new.save_pretrained(tmp_path / "plain")
    settings = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["nothing"])
    packed = type(new).from_pretrained(tmp_path / "plain", quantization_config=settings)
    packed.save_pretrained(tmp_path / "packed")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "packed").eval()
    assert (
        again.is_quantized
        and custom_modules_of(again.config) == custom_modules_of(new.config)
        and quantized_by(again.config)
    )
    assert type(again.classifier[1]).__name__ == "Linear8bitLt"
    assert sum(isinstance(module, Separable) for module in again.modules()) == len(
        custom_modules_of(new.config).separable
    )
    inputs = {"pixel_values": torch.tensor(images.train[:4]["pixel_values"])}
    assert difference(outputs_of(packed.eval(), inputs), outputs_of(again, inputs)) == 0


def test_the_body_alone_loads_with_its_custom_modules(new, images, tmp_path):
    new.save_pretrained(tmp_path)
    body, lost = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not lost["missing_keys"]
    pixels = torch.tensor(images.train[:4]["pixel_values"])
    with torch.no_grad():
        states = [each(pixel_values=pixels).last_hidden_state for each in (new.base_model, body.eval())]
    assert difference(states[:1], states[1:]) == 0


def test_a_module_that_is_not_there_is_named(new):
    config = with_custom_modules(new.config, CustomModules(separable={"resnet.nowhere": 1}))
    with pytest.raises(ValueError, match=r"names a custom module 'resnet\.nowhere', which ResNetForImage"):
        AutoModelForImageClassification.from_config(config)


@pytest.mark.parametrize("described", ["x", 3, {"separable": {"stem": "x"}}, {"other": 1}])
def test_a_damaged_description_is_named(tmp_path, described):
    resnet().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hf_pe_modules": described}))
    with pytest.raises(
        UsageError, match=r"config\.json describes custom modules in a way that this version cannot read"
    ):
        load_config(resolve(str(tmp_path)))


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
    assert "import hf_pe.plugin" in card and "registers the custom modules with transformers" in card


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (StructuredPruning(keep={"layers": 1}), "prune: .* Put prune before separate"),
        (BackboneSwap(to="mobilenet_v2_0.35"), "swap: .* Put swap before separate"),
        (BitsAndBytesQuantization(), r"quantize: .*\(separate\) .*\. Leave out one of the two"),
        (SeparableConvolutions(), "separate: "),
    ],
)
def test_what_needs_a_stock_model_is_refused_afterwards(after, message):
    from hf_pe.run.dry_run import dry_run

    model = resnet()
    with pytest.raises(UsageError, match=message):
        dry_run(ModelSpec(model.config, type(model)), [SeparableConvolutions(), after], {})


def test_a_model_without_plain_convolutions_is_refused():
    with pytest.raises(UsageError, match="has no plain convolution"):
        SeparableConvolutions().dry_run(ModelSpec(bert_config(), BertForSequenceClassification))
    assert discover(bert_config(), BertForSequenceClassification).axes
