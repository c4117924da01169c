import pytest
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    Dinov2Config,
    Dinov2Model,
    SegformerConfig,
    SegformerModel,
    SwinConfig,
    SwinModel,
)

from hf_pe.anatomy import discover, meta_model, resized
from hf_pe.dummies.tiny import tiny


def anatomy_of(model_type):
    config = tiny(AutoConfig.for_model(model_type), depth=True)
    return discover(config, AutoModel._model_mapping[type(config)]), config


def test_bert_axes_and_sizes():
    anatomy, _config = anatomy_of("bert")
    sizes = {axis.name: axis.size for axis in anatomy.axes}
    assert sizes == {"vocabulary": 99, "hidden": 32, "layers": 12, "heads": 4, "ffn": 24}
    ffn = anatomy.named("ffn")[0]
    assert [s.name for s in ffn.in_group("encoder.layer.0")] == [
        "encoder.layer.0.intermediate.dense.weight",
        "encoder.layer.0.intermediate.dense.bias",
        "encoder.layer.0.output.dense.weight",
    ]
    assert [s.name for s in ffn.in_group("encoder.layer.0") if s.consumes] == ["encoder.layer.0.output.dense.weight"]
    assert ffn.parameters == 12 * (24 * 32 * 2 + 24)


@pytest.mark.parametrize(
    ("model_type", "native"),
    [("bert", False), ("gpt2", False), ("mpnet", False), ("qwen3", True), ("t5", True), ("vit", True)],
)
def test_heads_are_native_only_where_a_weight_follows_the_field(model_type, native):
    anatomy = anatomy_of(model_type)[0]
    heads = anatomy.named("heads") or anatomy.named("kv_groups")
    assert heads
    assert all(axis.native == native for axis in heads)
    assert all(axis.parameters > 0 for axis in heads)


def test_fused_gate_and_up_is_seen_as_chunks():
    ffn = anatomy_of("modernbert")[0].named("ffn")[0]
    assert {s.layout.parts for s in ffn.slots} == {(1, 1), (1,)}


def test_key_value_heads_take_their_query_heads_along():
    anatomy, config = anatomy_of("qwen2")
    assert not anatomy.named("heads")
    (groups,) = anatomy.named("kv_groups")
    first = {s.name.split(".")[-2] for s in groups.in_group("layers.0")}
    assert first == {"q_proj", "k_proj", "v_proj", "o_proj"}
    fewer = resized(config, "num_key_value_heads", 2)
    assert (fewer.num_attention_heads, fewer.num_key_value_heads) == (2, 2)
    assert fewer.head_dim == config.hidden_size // config.num_attention_heads


def test_fused_query_key_and_value_are_seen_as_parts():
    (groups,) = anatomy_of("phi3")[0].named("kv_groups")
    assert {len(s.layout.parts) for s in groups.slots} == {1, 3}


def test_gpt2_width_is_found_though_its_field_is_none():
    anatomy, config = anatomy_of("gpt2")
    assert config.n_inner is None
    assert anatomy.named("ffn")[0].size == 4 * config.n_embd


@pytest.mark.parametrize("model_type", ["gpt_bigcode", "idefics2", "gemma4_text"])
def test_configs_that_count_heads_in_other_ways_are_read_all_the_same(model_type):
    """Key-value heads without query heads of the usual name; fields that differ between layers."""
    from hf_pe.anatomy.discover import _fields

    assert dict(_fields(AutoConfig.for_model(model_type)))


def test_towers_are_told_apart():
    names = {axis.name for axis in anatomy_of("whisper")[0].axes}
    assert {"encoder.ffn", "decoder.ffn", "encoder.layers", "decoder.layers"} <= names


def test_sub_configs_give_their_name():
    names = {axis.name for axis in anatomy_of("gemma3")[0].axes}
    assert {"text.ffn", "vision.ffn", "text.layers"} <= names


def test_a_shorter_stack_keeps_the_kept_layer_types():
    config = AutoConfig.for_model("gemma3_text")
    full = config.layer_types.index("full_attention")
    short = resized(config, "num_hidden_layers", 2, [0, full])
    assert short.num_hidden_layers == 2
    assert short.layer_types == ["sliding_attention", "full_attention"]
    assert len(config.layer_types) == 26


def test_the_skeleton_takes_no_memory_and_leaves_the_config_alone():
    config = AutoConfig.for_model("llama")
    before = config.to_dict()
    assert all(p.is_meta for p in meta_model(config, transformers.LlamaModel).parameters())
    assert config.to_dict() == before


def test_one_ratio_stands_for_the_widths_of_all_stages():
    config = SwinConfig(image_size=32, patch_size=4, embed_dim=24, depths=[1, 1, 1], num_heads=[2, 2, 2], window_size=2)
    axis = discover(config, SwinModel).named("ffn")[0]
    assert (axis.config_field, axis.size, axis.step) == ("mlp_ratio", 96, 1)
    assert [slot.layout.parts for slot in axis.slots if slot.consumes] == [(1,), (2,), (4,)]  # a unit is 4 in a row
    for size in range(1, 96):
        state = meta_model(resized(config, "mlp_ratio", size), SwinModel).state_dict()
        widths = [len(state[f"encoder.layers.{stage}.blocks.0.mlp.fc1.bias"]) for stage in range(3)]
        assert widths == [size, 2 * size, 4 * size]


def test_ratios_stage_by_stage_are_axes_of_their_own():
    config = SegformerConfig(depths=[1, 1], num_encoder_blocks=2, hidden_sizes=[16, 24], num_attention_heads=[2, 2], sr_ratios=[2, 1], patch_sizes=[3, 3], strides=[2, 2], mlp_ratios=[4, 2])  # fmt: skip
    axes = {a.name: (a.config_field, a.size, a.step) for a in discover(config, SegformerModel).named("ffn")}
    assert axes == {"stage1.ffn": ("mlp_ratios.0", 64, 16), "stage2.ffn": ("mlp_ratios.1", 48, 24)}
    assert resized(config, "mlp_ratios.1", 24).mlp_ratios == [4, 1]


def test_a_ratio_that_is_a_whole_number_says_multiples_only():
    config = Dinov2Config(hidden_size=24, num_attention_heads=4, num_hidden_layers=2, image_size=28)
    axis = discover(config, Dinov2Model).named("ffn")[0]
    assert (axis.size, axis.step, axis.size_multiple) == (96, 24, 24)
    assert resized(config, axis.config_field, 72).mlp_ratio == 3
