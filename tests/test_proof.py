import copy

import pytest
import torch
from transformers import AutoConfig, AutoModel, BertModel, LlamaForCausalLM

from hf_pe import proof as proof_module
from hf_pe.anatomy import Layout, discover
from hf_pe.instance import difference, example_inputs, lively, outputs_of, tiny
from hf_pe.proof import EFFECT, TOLERANCE, prove, removable_layers
from hf_pe.surgery import cut

TYPES = [
    "bert",
    "roberta",
    "distilbert",
    "mpnet",
    "modernbert",
    "llama",
    "qwen3",
    "gemma3_text",
    "gpt2",
    "t5",
    "vit",
    "whisper",
]


@pytest.mark.parametrize("model_type", TYPES)
def test_width_and_depth_are_proved_with_power(model_type):
    config = AutoConfig.for_model(model_type)
    model_class = AutoModel._model_mapping[type(config)]
    axes = [a for a in discover(config, model_class).axes if a.kind in ("ffn", "layers")]
    assert {a.kind for a in axes} == {"ffn", "layers"}
    for axis in axes:
        found = prove(config, model_class, axis)
        assert found.holds, found.reason
        assert found.error <= TOLERANCE
        assert found.effect >= EFFECT
        assert found.sabotage >= EFFECT


HEADS = ["llama", "qwen2", "qwen3", "mistral", "gemma3_text", "smollm3", "phi3", "mixtral", "qwen3_moe", "vit", "deit"]
"""Fused in Phi-3, of a size that the config does not tell in Qwen2 and ViT; key-value heads take their queries along."""
HIDDEN = ["llama", "qwen2", "qwen3", "mistral", "smollm3", "phi3", "mixtral", "qwen3_moe", "olmo2", "t5", "vit"]
"""Against a model whose removed coordinates are zero and whose norms are told the smaller width."""
EXPERTS = ["mixtral", "qwen3_moe", "qwen2_moe", "olmoe", "gpt_oss", "phimoe", "glm4_moe", "granitemoe", "deepseek_v3"]
"""Against a router that never picks them."""


@pytest.mark.parametrize(
    ("kinds", "model_type"),
    [
        *((("heads", "kv_groups"), model_type) for model_type in HEADS),
        *((("hidden",), model_type) for model_type in HIDDEN),
        *((("experts",), model_type) for model_type in EXPERTS),
        *((("expert_ffn",), model_type) for model_type in EXPERTS),
    ],
)
def test_heads_hidden_width_and_experts_are_proved_with_power(kinds, model_type):
    config = AutoConfig.for_model(model_type)
    model_class = AutoModel._model_mapping[type(config)]
    (axis,) = [a for a in discover(config, model_class).axes if a.kind in kinds]
    found = prove(config, model_class, axis)
    assert found.holds, found.reason
    assert found.error <= TOLERANCE
    assert min(found.effect, found.sabotage) >= EFFECT


@pytest.mark.parametrize("model_type", ["bert", "gemma3_text"])
def test_hidden_width_that_sizes_heads_or_scales_embeddings_is_refused(model_type):
    config = AutoConfig.for_model(model_type)
    model_class = AutoModel._model_mapping[type(config)]
    (axis,) = discover(config, model_class).named("hidden")
    assert "differ by" in prove(config, model_class, axis).reason


def test_a_router_that_still_picks_removed_experts_is_noticed():
    """A zero row is a logit of 0, not minus infinity: as a reference it must not pass."""
    config = tiny(AutoConfig.for_model("mixtral"))
    model = lively(AutoModel.from_config(config))
    (axis,) = discover(config, type(model)).named("experts")
    kept = {group: [0, 1] for group in axis.groups}
    zeroed = copy.deepcopy(model)
    for group in axis.groups:
        zeroed.get_parameter(f"{group}.mlp.gate.weight").data[2:] = 0
    inputs = example_inputs(model)
    smaller = outputs_of(cut(model, axis, kept), inputs)
    assert difference(outputs_of(zeroed, inputs), smaller) > EFFECT


@pytest.mark.parametrize(("heads", "groups"), [(9, 3), (14, 2), (6, 3), (8, 1)])
def test_any_share_of_heads_is_proved(heads, groups):
    """SmolLM2-135M has 9 and 3, Qwen2-0.5B 14 and 2."""
    config = AutoConfig.for_model(
        "llama", hidden_size=64 * heads, num_attention_heads=heads, num_key_value_heads=groups, head_dim=64
    )
    for axis in discover(config, LlamaForCausalLM).axes:
        if axis.size > 1:
            found = prove(config, LlamaForCausalLM, axis)
            assert found.holds, found.reason


@pytest.mark.parametrize("model_type", ["t5", "olmo2"])
def test_heads_that_share_a_bias_or_a_norm_are_refused(model_type):
    config = AutoConfig.for_model(model_type)
    model_class = AutoModel._model_mapping[type(config)]
    axis = next(a for a in discover(config, model_class).axes if a.kind in ("heads", "kv_groups"))
    assert "differ by" in prove(config, model_class, axis).reason


def test_a_wrong_layout_is_refused():
    """Gate and up lie one after the other in ModernBERT; read as neighbours, the cut is wrong and must be noticed."""
    config = tiny(AutoConfig.for_model("modernbert"))
    model = lively(AutoModel.from_config(config))
    axis = discover(config, type(model)).named("ffn")[0]
    slots = tuple(
        s if s.layout.parts == (1,) else s.__class__(s.name, s.dim, s.group, s.consumes, Layout((2,)))
        for s in axis.slots
    )
    wrong = axis.__class__(axis.name, axis.config_field, axis.size, slots)
    kept = {g: list(range(0, axis.size, 2)) for g in axis.groups}
    assert not proof_module._compare(model, wrong, kept).holds


def test_a_cut_that_forgets_a_slot_is_refused():
    config = tiny(AutoConfig.for_model("bert"))
    model = lively(BertModel(config))
    axis = discover(config, BertModel).named("ffn")[0]
    forgetful = axis.__class__(axis.name, axis.config_field, axis.size, axis.slots[1:])
    with pytest.raises((RuntimeError, AssertionError), match="mismatch"):
        proof_module._compare(model, forgetful, proof_module._pattern(axis, model))


def test_a_dead_axis_has_no_power():
    """Weights that leave the FFN without effect must not count as a proof."""
    config = tiny(AutoConfig.for_model("bert"))
    model = lively(BertModel(config))
    for layer in model.encoder.layer:
        layer.output.dense.weight.data.zero_()
    axis = discover(config, BertModel).named("ffn")[0]
    found = proof_module._compare(model, axis, proof_module._pattern(axis, model))
    assert not found.holds
    assert "no power" in found.reason


def test_the_very_pattern_that_will_be_cut_is_proved():
    config = AutoConfig.for_model("gemma3_text")
    model_class = AutoModel._model_mapping[type(config)]
    axis = discover(config, model_class).named("layers")[0]
    kept = {axis.groups[0]: [i for i in range(axis.size) if i % 3]}
    assert prove(config, model_class, axis, kept).holds


def test_layers_that_are_built_differently_hold_their_position():
    config = AutoConfig.for_model("modernbert")
    model_class = AutoModel._model_mapping[type(config)]
    axis = discover(config, model_class).named("layers")[0]
    assert removable_layers(config, model_class, axis) == list(range(1, config.num_hidden_layers))


def test_what_cannot_be_proved_is_refused_with_the_reason():
    config = AutoConfig.for_model("bert")
    heads = discover(config, BertModel).named("heads")[0]
    assert "needs the plug-in form" in prove(config, BertModel, heads).reason


def test_lively_parameters_are_never_zero_and_drawn_around_their_purpose():
    model = lively(BertModel(tiny(AutoConfig.for_model("bert"))))
    assert all((p != 0).all() for p in model.parameters())
    norm = model.encoder.layer[0].output.LayerNorm
    assert 0.7 < norm.weight.mean() < 1.3
    assert norm.bias.abs().max() > 0.1


def test_example_inputs_are_the_same_each_time():
    model = lively(BertModel(tiny(AutoConfig.for_model("bert"))))
    one, two = outputs_of(model, example_inputs(model)), outputs_of(model, example_inputs(model))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
