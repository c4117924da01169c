"""Swaps end in stock models that reload equal; what lies outside of the backbone survives; wrong ones are refused."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch
import transformers
from sklearn.datasets import load_digits
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    DetrConfig,
    DetrForObjectDetection,
    LlamaForCausalLM,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    PreTrainedTokenizerFast,
    PvtConfig,
    PvtForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

from hf_pe.backbones import PRESETS, BackboneSwap
from hf_pe.backbones.resolve import resolve_swap
from hf_pe.data import DataConfig, load_examples
from hf_pe.distill import Augment, Distillation
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import UsageError
from hf_pe.measure import latency, measure, parameters
from hf_pe.model_spec import ModelSpec
from hf_pe.recipe import StageState
from hf_pe.tasks import CausalLM, Embedding, ImageClassification, TextClassification
from tests.helpers import TEXTS, bert_config, saved, shared, taught, train_student
from tests.images import NAMES, of_rows

SMALL = {"to": "mobilenet_v2_0.35", "config": {"finegrained_output": False}}
SMALL_RESNET = {"depths": [1, 1], "hidden_sizes": [8, 16], "embedding_size": 8, "layer_type": "basic"}


def vit(**changes):
    sizes = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 512}
    labels = {"id2label": NAMES, "label2id": {v: k for k, v in NAMES.items()}}
    config = ViTConfig(image_size=32, patch_size=8, hidden_dropout_prob=0.0, **sizes | labels | changes)
    return randomize_weights_(ViTForImageClassification(config), 0).eval()


def swapped(recipe, model, data):
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    new = recipe.carry_out(StageState(model, data)).model
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    assert parameters(new).total == recipe.plan(StageState(model, data)).parameters < parameters(model).total
    return new


def assert_reloads(model, folder, loader):
    model.save_pretrained(folder)
    again = loader.from_pretrained(folder).eval()
    assert type(again) is type(model)
    inputs = example_inputs(model)
    assert difference(outputs_of(model, inputs), outputs_of(again, inputs)) < 1e-6


@pytest.mark.parametrize("name", sorted(n for n, p in PRESETS.items() if p.kind == "pixel_values"))
def test_every_image_preset_keeps_the_labels_and_a_map_of_four_pixels_where_its_config_can(name):
    large = ViTConfig(num_labels=3, id2label=NAMES, image_size=32, patch_size=4)
    target = resolve_swap(large, ViTForImageClassification, name, {}, None, None)
    assert target.config.id2label == NAMES and target.config.image_size == 32
    with torch.device("meta"):
        model = target.model_class(target.config).eval()
        maps = model.base_model(torch.zeros(2, 3, 32, 32, device="meta")).last_hidden_state
    fixed = any("cannot express another one" in note for note in target.notes)
    assert fixed == (target.config.model_type in ("mobilenet_v1", "resnet"))
    assert fixed or maps.shape[-1] >= 4


UNFIT = {
    "dinat": (ImportError, "natten"),
    "imagegpt": (UsageError, "reads input_ids"),
    "perceiver": (UsageError, "reads inputs"),
    "shieldgemma2": (UsageError, "reads input_ids"),
    "siglip2": (UsageError, "reads pixel_values in patches"),
    "swiftformer": (UsageError, "no single linear layer to its labels"),
    "timm_wrapper": (ImportError, "timm"),
}
"""Image classifiers that no compact backbone can stand in for, and why."""


@pytest.mark.parametrize("kind", sorted(config.model_type for config in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING))
def test_image_classifiers_of_every_kind_hand_their_head_on(kind):
    config = AutoConfig.for_model(kind, num_labels=3)
    classes = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    model_class = classes[0] if isinstance(classes, tuple) else classes
    if kind in UNFIT:
        error, message = UNFIT[kind]
        with pytest.raises(error, match=message):
            resolve_swap(config, model_class, "mobilenet_v2_0.35", {}, None, None)
        return
    target = resolve_swap(config, model_class, "mobilenet_v2_0.35", {}, None, None)
    assert target.config.num_labels == 3 and [point.new for point in target.stitch_points] == ["classifier"]


@pytest.mark.parametrize("to", ["resnet_10", "pvt"])
def test_labels_that_are_counted_and_not_named_are_as_many_afterwards(to):
    """PVT's config has a number of labels of its own."""
    target = resolve_swap(PvtConfig(num_labels=5), PvtForImageClassification, to, {}, None, None)
    assert target.config.num_labels == 5
    named = resolve_swap(ViTConfig(num_labels=3, id2label=NAMES), ViTForImageClassification, to, {}, None, None)
    assert named.config.num_labels == 3 and named.config.id2label == NAMES


@pytest.mark.parametrize("name", sorted(n for n, p in PRESETS.items() if p.kind == "input_ids"))
def test_every_text_preset_reads_the_same_tokens(name):
    config = bert_config(hidden_size=1024, num_attention_heads=16, vocab_size=500, num_labels=3, id2label=NAMES)
    target = resolve_swap(config, BertForSequenceClassification, name, {}, None, None)
    new = target.config
    assert (new.vocab_size, new.max_position_embeddings, new.id2label) == (500, 64, NAMES)
    assert [point.new for point in target.stitch_points] == ["classifier"]


@pytest.fixture
def learned(images):
    """A classifier that tells the images apart."""
    return taught(vit(), images, 40)


def accuracy(model, data):
    return data.task.evaluate(model, data).scores()["accuracy"]


def test_an_image_classifier_becomes_a_mobilenet_that_answers_by_the_bridge_alone(learned, images, tmp_path):
    assert accuracy(learned, images) > 0.95
    new = swapped(BackboneSwap(**SMALL), learned, images)
    assert isinstance(new, MobileNetV2ForImageClassification) and new.config.id2label == NAMES
    assert accuracy(new, images) > 0.9
    assert 0.6 < accuracy(swapped(BackboneSwap(**SMALL, fit=False), learned, images), images) < 0.9, "chance: a third"
    assert_reloads(new, tmp_path, AutoModelForImageClassification)


def test_the_swapped_model_learns_features_and_logits_with_the_head_reused(learned, images):
    data = replace(images, teacher=learned)
    new = swapped(BackboneSwap(**SMALL, fit=False), learned, data)
    recipe = Distillation(
        losses={"features": 1.0, "kl": 1.0}, steps=12, batch_size=24, learning_rate=2e-3, head_first=0.25,
        augment=Augment(crop=0.05, flip=False),
    )  # fmt: skip
    recipe.check(StageState(learned, data))
    recipe.plan(StageState(new, data))
    trained, curve = train_student(recipe, new, data)
    assert curve[-1][1] < curve[0][1]
    assert [n for n, _ in trained.named_parameters()] == [n for n, _ in new.named_parameters()]
    assert type(trained) is type(new)
    momenta = {m.momentum for m in trained.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert momenta == {0.997}, "as the architecture has it, though it learnt with another"


@pytest.mark.parametrize(
    "losses", [{"kl": 1.0, "task": 1.0}, {"features": 1.0, "kl": 1.0}], ids=["plain", "reused head"]
)
def test_training_goes_on_from_a_checkpoint(learned, images, losses, tmp_path):
    data = replace(images, teacher=learned)
    settings = {"steps": 4, "batch_size": 24, "checkpoint_every": 2, "learning_rate": 1e-3}
    recipe = Distillation(losses=losses, **settings)
    whole, _ = train_student(recipe, learned, data, work=tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-4")
    again, _ = train_student(recipe, learned, data, work=tmp_path, resume=True)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_head_alone_learns_at_first(images):
    model = vit()
    data = replace(images, teacher=model)
    recipe = Distillation(losses={"kl": 1.0}, steps=3, batch_size=8, head_first=0.99)
    trained, _ = train_student(recipe, model, data)
    moved = {n for (n, a), b in zip(model.named_parameters(), trained.parameters(), strict=True) if not a.equal(b)}
    assert moved == {"classifier.weight", "classifier.bias"}


def test_a_pretrained_folder_brings_its_weights(images, tmp_path):
    config = MobileNetV2Config(depth_multiplier=0.35, finegrained_output=False, num_labels=7, image_size=32)
    compact = randomize_weights_(MobileNetV2ForImageClassification(config), 5)
    compact.save_pretrained(tmp_path / "compact")
    swap = BackboneSwap(to=str(tmp_path / "compact"))
    assert swap.model_dump()["to"] == "compact", "no path of this machine is in it"
    new = swapped(swap, vit(), images)
    own, given = new.mobilenet_v2.state_dict(), compact.mobilenet_v2.state_dict()
    assert all(torch.equal(own[n], given[n]) for n in own if "running" not in n and "num_batches" not in n)
    assert new.config.num_labels == 3
    fresh = swapped(swap.model_copy(update={"weights": False}), vit(), images)
    assert not torch.equal(fresh.mobilenet_v2.conv_1x1.convolution.weight, given["conv_1x1.convolution.weight"])


def test_a_real_pretrained_mobilenet_comes_under_another_head(images):
    folder = shared("models/mobilenetv2-imagenet")
    big = vit(hidden_size=256, num_hidden_layers=6, intermediate_size=1024)
    new = swapped(BackboneSwap(to=str(folder)), big, images)
    assert new.config.num_labels == 3 and new.classifier.weight.shape == (3, 1280)


def test_the_same_family_made_shallower_begins_with_the_layers_it_keeps(images):
    model = vit()
    new = swapped(BackboneSwap(config={"num_hidden_layers": 1}), model, images)
    assert len(new.vit.layers) == 1
    for name, tensor in model.vit.layers[2].state_dict().items():
        assert torch.equal(new.vit.layers[0].state_dict()[name], tensor)


def test_a_residual_net_comes_under_a_transformers_head_and_back(images, tmp_path):
    new = swapped(BackboneSwap(to="resnet", config=SMALL_RESNET), vit(), images)
    assert isinstance(new, ResNetForImageClassification)
    assert_reloads(new, tmp_path, AutoModelForImageClassification)
    big = randomize_weights_(ResNetForImageClassification(ResNetConfig(num_labels=3, id2label=NAMES)), 2).eval()
    recipe = BackboneSwap(to="efficientnet_b0", config={"width_coefficient": 0.25}, image_size=32)
    plan = recipe.plan(StageState(big, images))
    assert any("to [1, 1, 1, 2, 1, 2, 1] for images of 32" in n for n in plan.notes)
    assert swapped(recipe, big, images).config.image_size == 32


def test_a_last_batch_of_one_image_at_one_place_does_no_harm(images):
    """Batch norms have no variance there."""
    few = replace(images, train=images.train.select(range(17)), teacher=vit())
    shape = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 32, 64], "layer_type": "basic"}
    new = swapped(BackboneSwap(to="resnet", config=shape), vit(), few)
    assert all(torch.isfinite(tensor).all() for tensor in new.state_dict().values())
    train_student(Distillation(losses={"kl": 1.0}, steps=2, batch_size=16), new, few)


def classifier_data(model, tokenizer, tmp_path):
    rows = "\n".join(["text,label", *(f"{t},{int('dog' in t)}" for t in TEXTS)])
    (tmp_path / "a.csv").write_text(rows)
    examples = load_examples(DataConfig(train=str(tmp_path / "a.csv"), label="label"))
    return replace(TextClassification().prepare(examples, tokenizer, model.config), teacher=model)


def test_an_encoder_becomes_a_narrower_one_whose_tokens_lie_as_they_did(tokenizer, tmp_path):
    model = randomize_weights_(BertForSequenceClassification(bert_config(num_labels=2)), 1).eval()
    data = classifier_data(model, tokenizer, tmp_path)
    new = swapped(BackboneSwap(to="bert_tiny", config={"hidden_size": 32, "intermediate_size": 64}), model, data)
    old, own = (m.bert.embeddings.word_embeddings.weight.detach() for m in (model, new))
    assert own.shape == (200, 32)
    distances, expected = (torch.cdist(t, t) for t in (own, old))
    assert torch.corrcoef(torch.stack([distances.flatten(), expected.flatten()]))[0, 1] > 0.8


def test_a_head_of_another_kind_is_bridged_at_its_last_map(tokenizer, tmp_path):
    config = RobertaConfig(
        vocab_size=200, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=66, num_labels=2, pad_token_id=0,
    )  # fmt: skip
    model = randomize_weights_(RobertaForSequenceClassification(config), 1).eval()
    data = classifier_data(model, tokenizer, tmp_path)
    new = swapped(BackboneSwap(to="bert_tiny", config={"hidden_size": 32, "intermediate_size": 64}), model, data)
    assert isinstance(new, BertForSequenceClassification) and new.config.pad_token_id == 0


def test_a_decoder_becomes_a_smaller_one_of_the_same_tokens(llama_folder, tokenizer):
    model = LlamaForCausalLM.from_pretrained(llama_folder).eval()
    examples = replace(load_examples(TEXTS), config=DataConfig(train="x", max_length=16))
    data = CausalLM().prepare(examples, tokenizer, model.config)
    width = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    new = swapped(BackboneSwap(config=width | {"head_dim": 8}), model, data)
    assert new.config.vocab_size == model.config.vocab_size


def test_a_model_of_sound_becomes_a_shallower_one():
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 3}
    conv = {"conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_feat_extract_layers": 2}
    config = Wav2Vec2Config(
        **sizes | conv,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=16,
        num_labels=3,
    )
    model = randomize_weights_(Wav2Vec2ForSequenceClassification(config), 3).eval()
    rows = {"input_values": torch.randn(24, 800).numpy(), "labels": [i % 3 for i in range(24)]}
    new = swapped(BackboneSwap(config={"num_hidden_layers": 1}), model, of_rows(ImageClassification(), rows))
    assert torch.equal(new.projector.weight, model.projector.weight)


def detr(**changes):
    backbone = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2], layer_type="basic", out_features=["stage2"]
    )
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 5, "num_labels": 3}
    return DetrForObjectDetection(
        DetrConfig(backbone_config=backbone, use_timm_backbone=False, **sizes | heads | changes)
    )


def test_the_backbone_of_a_detector_is_exchanged_and_all_else_survives(images, tmp_path):
    model = randomize_weights_(detr(), 4).eval()
    new = swapped(BackboneSwap(to="resnet", config=SMALL_RESNET), model, images)
    assert new.config.backbone_config.hidden_sizes == [8, 16]
    own, kept = new.state_dict(), model.state_dict()
    outside = [n for n in own if ".backbone." not in n and not n.startswith("model.input_projection.weight")]
    assert len(outside) > 20
    assert all(torch.equal(own[n], kept[n]) for n in outside if "projection" not in n)
    assert own["model.input_projection.weight"].shape == (32, 16, 1, 1)
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}] * 2
    out = new(pixel_values=torch.randn(2, 3, 32, 32), labels=labels)
    assert torch.isfinite(out.loss)
    new.config.image_size = 32
    assert_reloads(new, tmp_path, AutoModelForObjectDetection)


def test_a_head_that_reads_several_maps_has_a_bridge_for_each(images):
    convnext = ConvNextConfig(
        hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], out_features=[f"stage{i}" for i in range(1, 5)]
    )
    sizes = {"hidden_size": 16, "pool_scales": [1, 2], "use_auxiliary_head": False, "num_labels": 3}
    model = randomize_weights_(
        UperNetForSemanticSegmentation(UperNetConfig(backbone_config=convnext, **sizes)), 5
    ).eval()
    data = of_rows(ImageClassification(), {"pixel_values": torch.randn(24, 3, 64, 64).numpy()})
    changes = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    recipe = BackboneSwap(to="resnet", config=changes)
    assert len(resolve_swap(model.config, type(model), "resnet", changes, None, None).stitch_points) == 6
    new = swapped(recipe, model, data)
    assert new.config.backbone_config.out_features == ["stage1", "stage2", "stage3", "stage4"]
    assert torch.equal(new.decode_head.classifier.weight, model.decode_head.classifier.weight)
    with torch.no_grad():
        assert new(torch.zeros(1, 3, 64, 64)).logits.shape == (1, 3, 64, 64)


STAGES = [f"stage{i}" for i in range(1, 5)]
FOUR = {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 40], "depths": [1] * 4, "layer_type": "basic"}
HALF = {**FOUR, "embedding_size": 8, "hidden_sizes": [8, 12, 16, 20]}
TOKENS = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 2}
DINO = {**TOKENS, "image_size": 56, "patch_size": 14, "out_features": STAGES, "reshape_hidden_states": False}
NECK = {"neck_hidden_sizes": [8, 12, 16, 20], "fusion_hidden_size": 16, "patch_size": 14}
DECODER = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 5, "num_labels": 3,
}  # fmt: skip
UNIVERSAL = {
    "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 32, "num_labels": 3,
    "dim_feedforward": 32, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "num_queries": 4,
}  # fmt: skip
POSE = {"image_size": [64, 64], "patch_size": [16, 16], "num_attention_heads": 2, "mlp_ratio": 2}


def resnet_backbone(kind="resnet", stages=STAGES, **changes):
    return {"model_type": kind, **FOUR, "out_features": stages, **changes}


def dpt(readout):
    values = {"backbone_config": {"model_type": "dinov2", **DINO}, "is_hybrid": False, "readout_type": readout}
    return "dpt", "DPTForDepthEstimation", {**values, **NECK, "image_size": 56}, "dinov2", {**TOKENS, "hidden_size": 16}


PARTS = [
    ("conditional_detr", "ConditionalDetrForObjectDetection",
     {"backbone_config": resnet_backbone(stages=["stage4"]), **DECODER}, "resnet", HALF),
    ("deformable_detr", "DeformableDetrForObjectDetection",
     {"backbone_config": resnet_backbone(stages=STAGES[1:]), **DECODER}, "resnet", HALF),
    ("rt_detr", "RTDetrForObjectDetection",
     {"backbone_config": resnet_backbone("rt_detr_resnet", STAGES[1:]), "d_model": 32, "encoder_hidden_dim": 32,
      "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_queries": 12, "encoder_in_channels": [24, 32, 40],
      "decoder_in_channels": [32] * 3, "decoder_layers": 1}, "resnet", HALF),
    ("upernet", "UperNetForSemanticSegmentation",
     {"backbone_config": resnet_backbone(), "hidden_size": 16, "pool_scales": [1, 2], "auxiliary_in_channels": 32},
     "convnext", {"hidden_sizes": [8, 12, 16, 20], "depths": [1] * 4}),
    ("mask2former", "Mask2FormerForUniversalSegmentation",
     {"backbone_config": {"model_type": "swin", "embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 2, 2, 2],
      "window_size": 2, "image_size": 64, "out_features": STAGES}, **UNIVERSAL}, "resnet", HALF),
    ("maskformer", "MaskFormerForInstanceSegmentation",
     {"backbone_config": resnet_backbone(), "fpn_feature_size": 32, "mask_feature_size": 32, "num_labels": 3,
      "decoder_config": {"model_type": "detr", "backbone_config": resnet_backbone(stages=["stage4"]), **DECODER}},
     "resnet", HALF),
    dpt("ignore"),
    dpt("add"),
    ("depth_anything", "DepthAnythingForDepthEstimation",
     {"backbone_config": {"model_type": "dinov2", **DINO}, "reassemble_hidden_size": 32, **NECK}, "dinov2",
     {**TOKENS, "hidden_size": 16}),
    ("vitpose", "VitPoseForPoseEstimation",
     {"backbone_config": {"model_type": "vitpose_backbone", **TOKENS, **POSE, "out_features": ["stage4"]}},
     "vitpose_backbone", {**POSE, "hidden_size": 16, "num_hidden_layers": 1}),
]  # fmt: skip


def with_part(kind, model_class, values):
    config = AutoConfig.for_model(kind, **values)
    model = randomize_weights_(getattr(transformers, model_class)(config), 1).eval()
    pixels = torch.randn(16, 3, *[56 if "patch_size" in values else 64] * 2, generator=torch.Generator().manual_seed(0))
    return model, of_rows(ImageClassification(), {"pixel_values": pixels.numpy()})


@pytest.mark.parametrize(("kind", "model_class", "values", "to", "config"), PARTS, ids=lambda each: str(each)[:24])
def test_what_holds_a_backbone_has_it_exchanged_and_keeps_the_rest(kind, model_class, values, to, config, tmp_path):
    model, data = with_part(kind, model_class, values)
    recipe = BackboneSwap(to=to, config=config)
    target = resolve_swap(model.config, type(model), to, config, None, None)
    assert target.stitch_points and target.config.backbone_config.model_type == to
    new = swapped(recipe, model, data)
    bridges = [point.new for point in target.stitch_points]
    own, kept = new.state_dict(), model.state_dict()
    outside = [n for n in own if not n.startswith((target.prefix + ".", *bridges))]
    assert all(torch.equal(own[n], kept[n]) for n in outside if "running" not in n and "num_batches" not in n)
    pixels = {"pixel_values": torch.tensor(data.train[:2]["pixel_values"])}
    new.save_pretrained(tmp_path)
    again = type(new).from_pretrained(tmp_path).eval()
    assert difference(outputs_of(new, pixels), outputs_of(again, pixels)) < 1e-6


def test_what_bends_the_features_before_it_reads_them_cannot_be_bridged():
    kind, model_class, values, to, config = dpt("project")
    model, data = with_part(kind, model_class, values)
    with pytest.raises(UsageError, match=r"readout_projects\.0\.0 \(Linear\) changes with the backbone"):
        BackboneSwap(to=to, config=config).plan(StageState(model, data))


def test_other_strides_under_a_detector_are_refused(images):
    wrong = {**SMALL_RESNET, "depths": [1, 1, 1], "hidden_sizes": [8, 8, 16]}
    with pytest.raises(UsageError, match="expected 4 x 4 as the original has, got 2 x 2"):
        swap = BackboneSwap(to="resnet", config=wrong)
        swap.apply(StageState(detr().eval(), images), None)


def test_one_tower_is_exchanged_alone(images):
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    vision = tower | {"image_size": 32, "patch_size": 16}
    config = CLIPConfig(
        text_config=tower | {"vocab_size": 99, "max_position_embeddings": 16, "eos_token_id": 2},
        vision_config=vision,
        projection_dim=16,
    )
    model = randomize_weights_(CLIPModel(config), 6).eval()
    rows = {
        "pixel_values": images.train["pixel_values"],
        "input_ids": [[1, 5, 7, 2]] * 96,
        "attention_mask": [[1] * 4] * 96,
    }
    data = of_rows(ImageClassification(), rows)
    changes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    new = swapped(BackboneSwap(part="vision_config", config=changes), model, data)
    assert new.visual_projection.weight.shape == (16, 16)
    own, kept = new.state_dict(), model.state_dict()
    assert all(torch.equal(own[n], kept[n]) for n in own if n.startswith("text"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"to": "mobilenet_v2_0.5x"}, r"no preset is called 'mobilenet_v2_0.5x'.*Did you mean 'mobilenet_v2_0.5'"),
        ({"to": "efficientnet_b7"}, r"expected a model of fewer than [\d,]+ parameters, got [\d,]+"),
        ({"to": "bert_tiny"}, r"has no AutoModelForImageClassification"),
        ({"to": "mobilenet_v2_0.35", "config": {"depth_multiplyer": 1}}, r"has no depth_multiplyer.*depth_multiplier"),
        ({"config": {"num_attention_heads": 0}}, r"cannot be built"),
        ({"to": "efficientnet_b0", "config": {"hidden_dim": 7}}, r"hidden_dim: expected 1280"),
        ({"part": "text_config", "to": "resnet_10"}, r"has no text_config"),
        ({}, r"expected `to`"),
    ],
)
def test_what_cannot_work_is_said_before_any_weights(settings, message):
    spec = ModelSpec(config=vit().config, model_class=ViTForImageClassification)
    with pytest.raises(UsageError, match=message):
        BackboneSwap(**settings).dry_run(spec)


def test_embeddings_of_another_width_are_refused(bert_folder, tokenizer):
    from transformers import BertModel

    model = BertModel.from_pretrained(bert_folder)
    data = Embedding().prepare(load_examples(TEXTS), tokenizer, model.config)
    with pytest.raises(UsageError, match="the embeddings would be 32 wide in place of 64"):
        BackboneSwap(to="bert_tiny", config={"hidden_size": 32}).plan(StageState(model, data))


@pytest.mark.parametrize("layers", ["uniform", "similar", "last", (0, 1, 2)])
def test_a_convolutional_student_learns_from_the_maps_of_a_convolutional_teacher(layers, images):
    sizes = {"embedding_size": 16, "hidden_sizes": [96, 160], "depths": [2, 2], "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(num_labels=3, id2label=NAMES, **sizes))
    data = replace(images, teacher=randomize_weights_(model, 0))
    small = SMALL_RESNET if isinstance(layers, tuple) else None  # as many maps as the teacher's
    recipe = BackboneSwap(config=small) if small else BackboneSwap(image_size=32, **SMALL)
    new = swapped(recipe, model, data)
    learns = Distillation(losses={"hidden": 1.0}, layers=layers, steps=40, batch_size=16, learning_rate=4e-3)
    learns.plan(StageState(new, data))
    trained, curve = train_student(learns, new, data)
    assert curve[-1][1] < 0.9 * curve[0][1]
    assert [n for n, _ in trained.named_parameters()] == [n for n, _ in new.named_parameters()]


def test_models_side_by_side_see_images_of_the_same_size():
    """A ResNet's config says no size, that of the MobileNet in its place does."""
    model = ResNetForImageClassification(ResNetConfig(**SMALL_RESNET)).eval()
    small = copy.deepcopy(model)
    small.config.image_size = 64
    figures = measure({"dense": model, "small": small}, batches=())
    assert figures["dense"].flops == figures["small"].flops
    shapes = []
    model.register_forward_pre_hook(lambda _, __, inputs: shapes.append(inputs["pixel_values"].shape), with_kwargs=True)
    latency({"dense": model, "small": small}, batch=1, seconds=0.01)
    assert {*shapes} == {(1, 3, 64, 64)}


def test_hidden_states_of_a_convolutional_student_are_refused(images):
    model = vit()
    data = replace(images, teacher=model)
    new = swapped(BackboneSwap(**SMALL), model, data)
    with pytest.raises(UsageError, match=r"have different positions.*Use `features`"):
        Distillation(losses={"hidden": 1.0}).plan(StageState(new, data))


@pytest.mark.parametrize(
    "settings",
    [{"lora": {}, "losses": {"features": 1.0}}, {"cache": {"folder": "x"}, "augment": {}}],
    ids=["lora", "cache"],
)
def test_training_that_cannot_go_together_is_refused(settings):
    with pytest.raises(ValueError, match="leave out"):
        Distillation(**settings)


def other_tokenizer(words):
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[UNK]", "[PAD]", *words])}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]")


def test_a_pretrained_encoder_of_other_tokens_learns_yours(tokenizer, tmp_path):
    model = randomize_weights_(BertForSequenceClassification(bert_config(num_labels=2)), 1).eval()
    data = classifier_data(model, tokenizer, tmp_path)
    theirs = other_tokenizer(
        ["dog", "cat", "the", "garden", "house", "quiet", "bird", "horse", "long", "street", "old"]
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": len(theirs)}
    small = saved(
        tmp_path / "small", randomize_weights_(BertForSequenceClassification(bert_config(**sizes)), 2), theirs
    )
    recipe = BackboneSwap(to=str(small))
    assert any(
        "of your tokens keep the backbone's embeddings" in note for note in recipe.plan(StageState(model, data)).notes
    )
    new = recipe.carry_out(StageState(model, data)).model
    given = BertForSequenceClassification.from_pretrained(small).bert
    own = new.bert.embeddings.word_embeddings.weight
    assert own.shape == (200, 32)
    expected = given.embeddings.word_embeddings.weight[theirs.get_vocab()["dog"]]
    assert torch.equal(own[tokenizer.get_vocab()["dog"]], expected)
    assert torch.equal(new.bert.encoder.layer[1].output.dense.weight, given.encoder.layer[1].output.dense.weight)
    saved(tmp_path / "far", given, other_tokenizer(["\u0434\u043e\u043c", "\u043a\u043e\u0442"]))
    with pytest.raises(UsageError, match=r"shares [\d.]+% of the tokens of yours"):
        BackboneSwap(to=str(tmp_path / "far")).plan(StageState(model, data))


def test_digits_from_a_resnet_onto_a_mobilenet():
    """The smoke test on real images: 1,797 of 8 x 8 pixels, drawn four times as large."""
    digits = load_digits()
    pixels = torch.tensor(digits.images, dtype=torch.float32)[:, None].repeat_interleave(4, 2).repeat_interleave(4, 3)
    pixels, labels = (pixels / 8 - 1).repeat(1, 3, 1, 1), digits.target
    data = of_rows(ImageClassification(), {"pixel_values": pixels[:1400].numpy(), "labels": labels[:1400]})
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic", num_labels=10
    )
    teacher = taught(ResNetForImageClassification(config), data, 120)
    config = {"width_coefficient": 0.3, "depth_coefficient": 0.2}
    swap = BackboneSwap(to="efficientnet_b0", config=config, image_size=32)
    small = swap.carry_out(StageState(teacher, data)).model
    recipe = Distillation(losses={"features": 1.0, "kl": 1.0}, steps=120, batch_size=32, learning_rate=4e-3)
    learned = recipe.carry_out(StageState(small, replace(data, teacher=teacher))).model

    @torch.no_grad()
    def accuracy(model):
        return float((model.eval()(pixels[1400:]).logits.argmax(1).numpy() == labels[1400:]).mean())

    assert accuracy(teacher) > 0.85
    assert accuracy(learned) > max(0.9 * accuracy(teacher), accuracy(small))
    assert parameters(learned).total < parameters(teacher).total


def test_a_swap_sees_images_of_the_processors_size_where_the_config_has_none(images):
    """A ResNet's config names none: its compact body was made for the 224 pixels of the preset."""
    config = ResNetConfig(
        num_labels=3, hidden_sizes=[64, 128], depths=[2, 2], layer_type="basic", embedding_size=32, id2label=NAMES
    )
    model = ResNetForImageClassification(config).eval()
    data = replace(images, processor=ViTImageProcessor(size={"height": 32, "width": 32}))
    recipe = BackboneSwap(to="mobilenet_v2_0.35", config={"depth_multiplier": 0.1})
    plan = recipe.plan(StageState(model, data))
    assert any("for images of 32 pixels" in note for note in plan.notes)
    outlined, after = recipe.dry_run(data.spec(model))
    assert outlined.notes == plan.notes and after.pixels == 32
    assert (after.config.image_size, after.config.output_stride) == (32, 8)
    assert recipe.dry_run(ModelSpec(config, ResNetForImageClassification))[1].config.image_size == 224
