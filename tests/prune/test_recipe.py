from dataclasses import replace

import datasets
import pytest
import torch
from transformers import (
    AutoConfig,
    BertModel,
    ConvNextConfig,
    ConvNextForImageClassification,
    CTRLModel,
    Dinov2Config,
    Dinov2Model,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    SegformerConfig,
    SegformerForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

from hf_pe.anatomy import EVERYWHERE
from hf_pe.data import DataConfig, Examples, load_examples
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import UsageError
from hf_pe.measure import evaluate_task, parameters
from hf_pe.model_spec import ModelSpec
from hf_pe.plans import Plan
from hf_pe.prune import StructuredPruning
from hf_pe.prune.criteria import CRITERIA
from hf_pe.recipe import StageState
from hf_pe.tasks import AudioClassification, CausalLM, Embedding, Seq2Seq
from tests.helpers import TEXTS, assert_same_block_by_block, bert_config, small, taught
from tests.images import of_rows

SKETCH = ModelSpec(config=bert_config(), model_class=BertModel)


@pytest.fixture
def work(bert_folder, tokenizer):
    model = BertModel.from_pretrained(bert_folder).eval()
    return model, Embedding().prepare(load_examples(TEXTS), tokenizer, model.config)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_plan_then_apply_gives_the_sizes_of_the_dry_run(work, criterion):
    model, data = work
    recipe = StructuredPruning(keep={"ffn": 0.5, "layers": 3}, criterion=criterion)
    outline, spec = recipe.dry_run(SKETCH)
    plan = recipe.plan(StageState(model, data))
    smaller = recipe.apply(StageState(model, data), plan).model
    assert (smaller.config.intermediate_size, smaller.config.num_hidden_layers) == (64, 3)
    assert spec.config.intermediate_size == 64
    assert smaller.num_parameters() == outline.parameters == plan.parameters
    assert [list(v) for v in plan.kept["layers"].values()] != [[]]
    assert len(plan.kept["ffn"]) == 3
    assert model.config.num_hidden_layers == 4


def test_a_plan_is_applied_the_same_after_json(work):
    model, data = work
    recipe = StructuredPruning(keep={"ffn": 0.5})
    plan = recipe.plan(StageState(model, data))
    one = recipe.apply(StageState(model, data), plan).model
    other = recipe.apply(StageState(model, data), Plan.model_validate_json(plan.model_dump_json())).model
    inputs = example_inputs(model)
    assert difference(outputs_of(one, inputs), outputs_of(other, inputs)) == 0


def test_repair_brings_the_outputs_nearer(work):
    model, data = work
    batch = next(data.batches(data.train, 64))
    gaps = {}
    for refit in ("none", "least_squares"):
        recipe = StructuredPruning(keep={"ffn": 0.5}, refit=refit)
        smaller = recipe.carry_out(StageState(model, data)).model
        with torch.no_grad():
            one, other = (Embedding().signals(m, batch)["embeddings"] for m in (model, smaller))
        gaps[refit] = float((one - other).square().sum(1).mean())
    assert gaps["least_squares"] < 0.7 * gaps["none"]


@pytest.fixture
def causal(llama_folder, tokenizer):
    model = LlamaForCausalLM.from_pretrained(llama_folder).eval()
    return model, CausalLM().prepare(load_examples(TEXTS), tokenizer, model.config)


@pytest.fixture
def trained(causal):
    model, data = causal
    torch.manual_seed(0)
    return taught(LlamaForCausalLM(model.config), data), data


@pytest.mark.parametrize("axis", ["ffn", "kv_groups"])
def test_where_memory_is_short_blocks_go_one_by_one_to_the_same_model(causal, monkeypatch, axis):
    model, data = causal
    recipe = StructuredPruning(keep={axis: 0.5})
    assert_same_block_by_block(recipe, model, data, monkeypatch)


@pytest.mark.parametrize(
    ("settings", "heads", "groups"),
    [
        ({"keep": {"heads": 0.5}}, 4, 4),
        ({"keep": {"heads": 0.7}}, 4, 4),
        ({"keep": {"heads": 0.5, "kv_groups": 0.5}}, 4, 2),
        ({"budget": {"parameters": 0.85}, "axes": ("heads",)}, 4, 4),
        ({"budget": {"parameters": 0.75}, "axes": ("heads", "kv_groups")}, None, None),
    ],
)
def test_query_heads_of_groups_are_cut_as_planned(tokenizer, settings, heads, groups):
    sizes = {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
    config = MistralConfig(vocab_size=len(tokenizer), num_hidden_layers=2, intermediate_size=32, **sizes)
    model = randomize_weights_(MistralForCausalLM(config))
    data = CausalLM().prepare(load_examples(TEXTS), tokenizer, config)
    recipe = StructuredPruning(**settings, criterion="magnitude_l2", refit="none")
    plan = recipe.plan(StageState(model, data))
    smaller = recipe.apply(StageState(model, data), plan).model
    planned = {change.axis: change.after for change in plan.sizes}
    built = {"heads": smaller.config.num_attention_heads, "kv_groups": smaller.config.num_key_value_heads}
    assert planned == {name: built[name] for name in planned} and smaller.num_parameters() == plan.parameters
    assert heads is None or (built["heads"], built["kv_groups"]) == (heads, groups)


def test_a_plan_that_contradicts_itself_is_refused_before_work(work):
    model, data = work
    recipe = StructuredPruning(keep={"ffn": 0.5}, criterion="magnitude_l2", refit="none")
    plan = recipe.plan(StageState(model, data))
    more = {group: [*units, 127] for group, units in plan.kept["ffn"].items() if 127 not in units}
    kept = {group: more.get(group, [*range(65)]) for group in plan.kept["ffn"]}
    with pytest.raises(ValueError, match="leaves 64 units of 'ffn', its kept units 65"):
        recipe.apply(StageState(model, data), plan.model_copy(update={"kept": {"ffn": kept}}))


def test_what_the_hidden_width_takes_along_is_in_the_plan(tokenizer):
    """A ratio says the width of a FFN, so that a smaller hidden width makes it smaller once more."""
    config = Dinov2Config(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, image_size=28)
    plan, after = StructuredPruning(keep={"ffn": 0.75, "hidden": 0.5}).dry_run(ModelSpec(config, Dinov2Model))
    assert {change.axis: change.after for change in plan.sizes} == {"ffn": 48, "hidden": 16}
    assert any(note.startswith("ffn: 48 of 128 units are kept") for note in plan.notes)
    assert after.config.hidden_size * after.config.mlp_ratio == 48


@pytest.mark.parametrize("criterion", CRITERIA)
def test_heads_and_width_go_together(causal, criterion):
    model, data = causal
    recipe = StructuredPruning(keep={"kv_groups": 1, "ffn": 0.5}, criterion=criterion)
    outline, _ = recipe.dry_run(ModelSpec(config=model.config, model_class=type(model)))
    smaller = recipe.carry_out(StageState(model, data)).model
    assert (smaller.config.num_attention_heads, smaller.config.num_key_value_heads) == (2, 1)
    assert smaller.num_parameters() == outline.parameters
    assert all(torch.isfinite(t).all() for t in outputs_of(smaller, example_inputs(smaller)))


def test_repair_after_heads_brings_the_outputs_nearer(causal):
    model, data = causal
    batch = next(data.batches(data.train, 64))
    gaps = {}
    for refit in ("none", "least_squares"):
        recipe = StructuredPruning(keep={"kv_groups": 1}, refit=refit)
        smaller = recipe.carry_out(StageState(model, data)).model
        with torch.no_grad():
            one, other = (CausalLM().signals(m, batch)["logits"] for m in (model, smaller))
        gaps[refit] = float((one - other).square().mean())
    assert gaps["least_squares"] < 0.9 * gaps["none"]


def test_a_number_of_heads_that_the_config_refuses_is_named_before_work():
    config = AutoConfig.for_model("llama", hidden_size=576, num_attention_heads=9, num_key_value_heads=9, head_dim=64)
    spec = ModelSpec(config=config, model_class=LlamaForCausalLM)
    with pytest.raises(UsageError, match=r"does not allow 5; it allows 1, 2, 3, 4, 6, 8, 9"):
        StructuredPruning(keep={"kv_groups": 5}).dry_run(spec)
    plan, _ = StructuredPruning(keep={"kv_groups": 0.75}).dry_run(spec)
    assert plan.sizes[0].after == 6


def test_a_share_of_the_parameters_is_met_from_below(work):
    recipe = StructuredPruning(budget={"parameters": 0.7}, round_to=8)
    plan, _ = recipe.dry_run(SKETCH)
    assert plan.exact
    dense = BertModel(bert_config())
    without = dense.num_parameters() - sum(
        m.weight.numel() for m in dense.modules() if isinstance(m, torch.nn.Embedding)
    )
    assert 0.6 * without < plan.parameters_without_embeddings <= 0.7 * without


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep": {"fnn": 0.5}}, r"no axis 'fnn'.*Did you mean 'ffn'\?"),
        ({"keep": {"vocabulary": 0.5}}, "needs a tokenizer with the kept tokens"),
        ({"keep": {"heads": 2}}, "the stock config of this model cannot express fewer 'heads'"),
        ({"keep": {"layers": 9}}, "expected 1 to 4, got 9"),
        ({"keep": {"ffn": 1.0}}, "nothing would be removed"),
        ({"budget": {"parameters": 0.05}}, r"cannot be reached.*the least is \d+"),
        ({"budget": {"parameters": 0.5}, "keep": {"ffn": 0.5}}, "prune.keep fixes it"),
        ({"budget": {"flops": 0.5}, "axes": ["fnn"]}, r"no axis 'fnn'.*Did you mean 'ffn'\?"),
        ({"floor": 0.9, "axes": ["heads"]}, "the stock config of this model cannot express fewer 'heads'"),
    ],
)
def test_targets_that_cannot_be_reached_say_what_can(fields, message):
    with pytest.raises(UsageError, match=message):
        StructuredPruning(**fields).dry_run(SKETCH)


@pytest.mark.parametrize("value", [0, 1.5, -1, "half", True])
def test_amounts_out_of_range(value):
    with pytest.raises(UsageError, match=r"expected a fraction above 0 and up to 1\.0"):
        StructuredPruning(keep={"ffn": value})


def test_nothing_to_do_is_refused():
    with pytest.raises(UsageError, match="needs 'keep'"):
        StructuredPruning()
    with pytest.raises(UsageError, match="expected at least one of parameters, flops"):
        StructuredPruning(budget={})
    with pytest.raises(UsageError, match="either 'budget' or 'floor'"):
        StructuredPruning(budget={"flops": 0.5}, floor=0.9)


def test_several_axes_share_a_target_by_what_they_lose(trained):
    model, data = trained
    recipe = StructuredPruning(budget={"parameters": 0.6}, axes=("ffn", "kv_groups", "layers"))
    outline, _ = recipe.dry_run(ModelSpec(config=model.config, model_class=type(model)))
    assert not outline.exact
    plan = recipe.plan(StageState(model, data))
    smaller = recipe.apply(StageState(model, data), plan).model
    whole, left = (parameters(m).without_embeddings for m in (model, smaller))
    assert 0.3 * whole < left <= 0.6 * whole
    assert plan.parameters == smaller.num_parameters()
    assert any("predicted parameters" in note for note in plan.notes)


@pytest.mark.usefixtures("random_criterion")
def test_what_matters_least_goes_first(causal):
    """Layers 1 and 2 add nothing; so depth goes first."""
    model, data = causal
    torch.manual_seed(0)
    model = LlamaForCausalLM(model.config)
    for layer in model.model.layers[1:]:
        layer.requires_grad_(False)
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    taught(model, data)
    recipe = StructuredPruning(budget={"parameters": 0.5}, axes=("ffn", "layers"), criterion="random", refit="none")
    plan = recipe.plan(StageState(model, data))
    assert {s.axis: s.after for s in plan.sizes}["layers"] == 1


@pytest.mark.parametrize("axes", [("ffn",), ("ffn", "layers")])
def test_a_floor_is_kept_and_used(work, axes):
    model, data = work
    data = replace(data, teacher=model)  # so that the original's own metric is 1
    recipe = StructuredPruning(floor=0.8, axes=axes)
    outline, after = recipe.dry_run(SKETCH)
    assert not outline.exact and after.config is SKETCH.config
    plan = recipe.plan(StageState(model, data))
    kept = evaluate_task(recipe.apply(StageState(model, data), plan).model, data).scores()["spearman"]
    assert 0.8 <= kept < 1
    assert plan.sizes
    assert f"measured {kept:.4f}" in plan.notes[0]


@pytest.mark.usefixtures("random_criterion")
def test_a_floor_that_no_cut_keeps_is_refused_with_what_is_left(work):
    model, data = work
    recipe = StructuredPruning(floor=0.999999, criterion="random", refit="none", round_to=64)
    with pytest.raises(UsageError, match=r"even the smallest cut leaves spearman at 0\.\d+"):
        recipe.plan(StageState(model, replace(data, teacher=model)))


def test_an_architecture_that_cannot_be_proved_is_refused_with_the_reason():
    """CTRL's positions are waves of its width."""
    spec = ModelSpec(AutoConfig.for_model("ctrl", n_layer=2), CTRLModel)
    with pytest.raises(UsageError, match=r"could not be verified and is refused: .+"):
        StructuredPruning(keep={"hidden": 0.5}).dry_run(spec)


@pytest.mark.parametrize(
    "fields",
    [
        *(
            {"keep": {"vision.ffn": 0.5}, "criterion": each}
            for each in ("obs", "obs_kfac", "activation_weight", "taylor")
        ),
        *({"keep": {"vision.layers": 1}, "depth": each} for each in ("influence", "greedy")),
        {"budget": {"parameters": 0.95}, "axes": ["text.ffn", "vision.ffn"], "criterion": "magnitude_l2"},
    ],
    ids=str,
)
def test_what_the_data_do_not_reach_is_not_chosen_blindly(tokenizer, fields):
    model = small("llava")
    data = Embedding().prepare(load_examples(TEXTS), tokenizer, model.config)
    with pytest.raises(UsageError, match=r"calibration data never reach 'vision\.\w+'"):
        StructuredPruning(**fields).plan(StageState(model, data))


def test_layers_that_hold_their_position_are_never_chosen():
    config = AutoConfig.for_model("modernbert", num_hidden_layers=4, layer_types=None)
    from transformers import ModernBertModel

    plan, _ = StructuredPruning(keep={"layers": 1}).dry_run(ModelSpec(config=config, model_class=ModernBertModel))
    assert plan.sizes[0].after == 1


@pytest.mark.parametrize(("model_class", "config"), [
    (ResNetForImageClassification, ResNetConfig(hidden_sizes=[16, 24], depths=[3, 2], embedding_size=8,
                                                layer_type="basic", num_labels=3)),
    (SegformerForImageClassification, SegformerConfig(num_labels=3, depths=[3, 1, 1, 2], hidden_sizes=[8, 16, 24, 32],
                                                      num_attention_heads=[1, 2, 2, 2])),
])  # fmt: skip
def test_layers_go_stage_by_stage_where_a_list_tells_them(model_class, config, images, tmp_path):
    torch.manual_seed(0)
    model = taught(model_class(config), images, 10)
    recipe = StructuredPruning(keep={"layers": 0.5})
    plan = recipe.plan(StageState(model, images))
    small = recipe.apply(StageState(model, images), plan).model
    assert {change.axis: change.after for change in plan.sizes}["stage1.layers"] == 2
    assert small.config.depths == [2, 1, 1, 1][: len(config.depths)]
    small.save_pretrained(tmp_path)
    again = model_class.from_pretrained(tmp_path)
    inputs = example_inputs(small)
    assert difference(outputs_of(small, inputs), outputs_of(again, inputs)) == 0


def test_heads_of_a_t5_go_in_step_and_are_repaired(tokenizer, tmp_path):
    """All blocks of a stack share one table of position biases, so the same heads stay in each."""
    rows = [{"text": text, "label": " ".join(text.split()[1:3])} for text in TEXTS]
    dataset = datasets.Dataset.from_list(rows)
    sizes = {"vocab_size": 200, "d_model": 32, "pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0}
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**sizes, d_ff=64, d_kv=8, num_layers=2, num_heads=4))
    examples = Examples(dataset, dataset, DataConfig(train="x", max_length=32, label="label"), "")
    data = Seq2Seq().prepare(examples, tokenizer, model.config)
    model = taught(model, data)
    recipe = StructuredPruning(keep={"heads": 0.5})
    plan = recipe.plan(StageState(model, data))
    assert {group: len(units) for group, units in plan.kept["heads"].items()} == {
        "encoder.block": 2,
        "decoder.block": 2,
    }
    small = recipe.apply(StageState(model, data), plan).model
    assert small.config.num_heads == 2 and small.config.d_kv == 8
    rough = StructuredPruning(keep={"heads": 0.5}, refit="none").apply(StageState(model, data), plan).model
    scores = [evaluate_task(each, data).scores()["perplexity"] for each in (small, rough)]
    assert scores[0] < scores[1]


def test_the_stages_of_a_swin_keep_the_same_share_of_their_own_widths(images, tmp_path):
    config = SwinConfig(image_size=32, patch_size=4, embed_dim=24, depths=[1, 1], num_heads=[2, 2], window_size=2, num_labels=3)  # fmt: skip
    model = SwinForImageClassification(config).eval()
    recipe = StructuredPruning(keep={"ffn": 0.6})
    small = recipe.carry_out(StageState(model, images)).model
    assert [layer.blocks[0].mlp.fc1.out_features for layer in small.swin.encoder.layers] == [64, 128]  # of 96 and 192
    small.save_pretrained(tmp_path)
    again = SwinForImageClassification.from_pretrained(tmp_path).eval()
    inputs = example_inputs(model)
    assert difference(outputs_of(small, inputs), outputs_of(again, inputs)) == 0


STAGES = {"depths": [1, 2], "num_labels": 3}
OF_STAGES = {
    "convnext": (ConvNextForImageClassification, ConvNextConfig(hidden_sizes=[16, 24], num_stages=2, patch_size=4, **STAGES)),
    "resnet": (ResNetForImageClassification, ResNetConfig(hidden_sizes=[16, 24], embedding_size=8, layer_type="basic", **STAGES)),
    "segformer": (SegformerForImageClassification, SegformerConfig(
        hidden_sizes=[16, 24], num_attention_heads=[1, 2], num_encoder_blocks=2, sr_ratios=[2, 1], patch_sizes=[7, 3],
        strides=[4, 2], mlp_ratios=[2, 2], **STAGES)),
    "swin": (SwinForImageClassification, SwinConfig(
        image_size=32, patch_size=4, embed_dim=24, num_heads=[3, 6], window_size=2, **STAGES)),
}  # fmt: skip


@pytest.mark.parametrize("kind", OF_STAGES)
def test_the_width_of_each_stage_goes_and_loads_as_stock(kind, images, tmp_path):
    model_class, config = OF_STAGES[kind]
    torch.manual_seed(0)
    model = taught(model_class(config), images, 10)
    criterion = "magnitude_l2" if kind == "resnet" else "obs"
    recipe = StructuredPruning(keep={"hidden": 0.75}, criterion=criterion, round_to=1)
    outline, _ = recipe.dry_run(ModelSpec(config=model.config, model_class=model_class))
    small = recipe.carry_out(StageState(model, images)).model
    assert small.num_parameters() == outline.parameters < model.num_parameters()
    widths = [small.config.embed_dim, small.config.hidden_size] if kind == "swin" else small.config.hidden_sizes
    assert widths == ([18, 36] if kind == "swin" else [12, 18])
    small.save_pretrained(tmp_path)
    again = model_class.from_pretrained(tmp_path).eval()
    inputs = example_inputs(small)
    assert difference(outputs_of(small, inputs), outputs_of(again, inputs)) == 0


def test_a_criterion_of_linear_maps_is_refused_where_convolutions_read_the_units():
    spec = ModelSpec(*reversed(OF_STAGES["resnet"]))
    with pytest.raises(UsageError, match=r"obs needs linear layers .*stage1\.hidden.*Choose magn"):
        StructuredPruning(keep={"hidden": 0.75}, round_to=1).dry_run(spec)


def test_grouped_convolutions_keep_the_same_channels_of_each_group(tmp_path):
    """And the weights that stay are what they were, though they are stored as a direction and its length."""
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, conv_dim=[8, 8], num_labels=3,
        conv_stride=[5, 4], conv_kernel=[10, 4], num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        num_feat_extract_layers=2, classifier_proj_size=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Wav2Vec2ForSequenceClassification(config).eval()
    sounds = {"input_values": torch.randn(24, 800).numpy(), "labels": [i % 3 for i in range(24)]}
    data = of_rows(AudioClassification(), sounds)
    recipe = StructuredPruning(keep={"hidden": 0.5}, round_to=1)
    plan = recipe.plan(StageState(model, data))
    kept = plan.kept["hidden"][EVERYWHERE]
    assert [{unit % 8 for unit in kept if unit // 8 == group} for group in range(4)] == [{u % 8 for u in kept}] * 4
    small = recipe.apply(StageState(model, data), plan).model
    one, other = (each.wav2vec2.encoder.pos_conv_embed.conv.weight for each in (model, small))
    offsets = [unit for unit in kept if unit < 8]
    assert torch.allclose(other, one[kept][:, offsets], atol=1e-6)
    small.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    inputs = {"input_values": torch.randn(2, 800)}
    assert difference(outputs_of(small, inputs), outputs_of(again, inputs)) < 1e-6


def test_query_heads_go_alone_as_many_in_each_group(tokenizer, tmp_path):
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=48, num_attention_heads=6, num_key_value_heads=2, num_hidden_layers=2, intermediate_size=64)  # fmt: skip
    data = CausalLM().prepare(load_examples(DataConfig(train="builtin:pydoc", max_length=32)), tokenizer, config)
    torch.manual_seed(0)
    model = taught(LlamaForCausalLM(config), data, 10)
    recipe = StructuredPruning(keep={"heads": 0.6})
    plan = recipe.plan(StageState(model, data))
    for units in plan.kept["heads"].values():
        assert [unit // 3 for unit in units] == [0, 0, 1, 1]
    small = recipe.apply(StageState(model, data), plan).model
    assert (small.config.num_attention_heads, small.config.num_key_value_heads, small.config.head_dim) == (4, 2, 8)
    small.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    inputs = example_inputs(model)
    assert difference(outputs_of(small, inputs), outputs_of(again, inputs)) == 0


def test_a_norm_over_all_heads_gives_those_that_stay_as_they_were(tokenizer):
    config = Olmo2Config(vocab_size=len(tokenizer), hidden_size=48, num_attention_heads=6, num_key_value_heads=6, num_hidden_layers=2, intermediate_size=64, pad_token_id=0, eos_token_id=3)  # fmt: skip
    data = CausalLM().prepare(load_examples(DataConfig(train="builtin:pydoc", max_length=32)), tokenizer, config)
    torch.manual_seed(0)
    model = Olmo2ForCausalLM(config).eval()
    model.model.layers[0].self_attn.q_proj.weight.data[:24] *= 4
    recipe = StructuredPruning(keep={"kv_groups": 0.5})
    kept = {f"model.layers.{layer}": [0, 1, 2] for layer in range(2)}  # the heads that fill the norm
    plan = recipe.plan(StageState(model, data)).model_copy(update={"kept": {"kv_groups": kept}})
    small = recipe.apply(StageState(model, data), plan).model
    rough = recipe.model_copy(update={"refit": "none"}).apply(StageState(model, data), plan).model
    queries: dict[str, torch.Tensor] = {}
    for name, each in (("before", model), ("after", small), ("rough", rough)):
        norm = each.model.layers[0].self_attn.q_norm
        norm.register_forward_hook(lambda m, a, out, name=name: queries.update({name: out}))
        outputs_of(each, example_inputs(model))
    original = queries["before"][..., :24]
    off = {
        name: abs(float((queries[name] * original).sum() / original.square().sum()) - 1) for name in ("after", "rough")
    }
    assert off["after"] < 0.3 * off["rough"]


def test_whole_heads_go_with_the_width_where_rotations_hold_their_size(tokenizer, tmp_path):
    torch.manual_seed(0)
    config = GPTNeoXConfig(vocab_size=len(tokenizer), hidden_size=64, num_attention_heads=4, num_hidden_layers=2, intermediate_size=96)  # fmt: skip
    model = GPTNeoXForCausalLM(config).eval()
    data = CausalLM().prepare(load_examples(DataConfig(train="builtin:pydoc", max_length=32)), tokenizer, config)
    recipe = StructuredPruning(keep={"hidden": 0.5})
    plan = recipe.plan(StageState(model, data))
    small = recipe.apply(StageState(model, data), plan).model
    assert (small.config.hidden_size, small.config.num_attention_heads) == (32, 2)
    for group, units in plan.kept["hidden"].items():
        heads = {unit // 16 for unit in units}
        assert len(units) == 32 and (group == EVERYWHERE or len(heads) == 2)
    small.save_pretrained(tmp_path)
    again = GPTNeoXForCausalLM.from_pretrained(tmp_path).eval()
    inputs = example_inputs(model)
    assert difference(outputs_of(small, inputs), outputs_of(again, inputs)) == 0
