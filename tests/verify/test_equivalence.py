import copy
import dataclasses

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    BertModel,
    BioGptForCausalLM,
    Gemma3ForCausalLM,
    GemmaForCausalLM,
    LlamaForCausalLM,
    T5ForConditionalGeneration,
)

from hf_pe.anatomy import EVERYWHERE, Layout, discover, resized
from hf_pe.anatomy.depth import removable_layers
from hf_pe.anatomy.norms import norms_along
from hf_pe.checkpoints.classes import class_for
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.dummies.tiny import randomize_weights_, tiny
from hf_pe.surgery import cut, cut_config
from hf_pe.verify import comparison
from hf_pe.verify import equivalence as equivalence
from hf_pe.verify.comparison import EFFECT, compare
from hf_pe.verify.equivalence import verify_cut


@pytest.mark.parametrize("model_type", ["ctrl", "m2m_100"])
def test_hidden_width_that_sizes_waves_of_positions_is_refused(model_type):
    config = AutoConfig.for_model(model_type)
    model_class = AutoModel._model_mapping[type(config)]
    (axis,) = discover(config, model_class).named("hidden")
    assert "differ by" in verify_cut(config, model_class, axis).reason


@pytest.mark.parametrize(
    "model_type", ["gpt_neox", "gptj", "roformer", "sam_vision_model", "qwen3_vl_vision", "qwen2_vl_text", "olmoe"]
)
def test_whole_heads_go_with_the_width_where_something_has_their_size(model_type):
    """Rotations, tables of them, positions inside heads."""
    config = AutoConfig.for_model(model_type)
    model_class = AutoModel._model_mapping[type(config)]
    (axis,) = discover(config, model_class).named("hidden")
    verification = verify_cut(config, model_class, axis)
    assert axis.whole_heads and not axis.narrows_heads
    assert verification.holds, verification.reason


def test_a_router_that_still_picks_removed_experts_is_noticed():
    """A zero row is a logit of 0, not minus infinity: as a reference it must not pass."""
    config = tiny(AutoConfig.for_model("mixtral"))
    model = randomize_weights_(AutoModel.from_config(config))
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
            verification = verify_cut(config, LlamaForCausalLM, axis)
            assert verification.holds, verification.reason


@pytest.mark.parametrize("model_type", ["bert", "bart", "gpt2", "bloom", "clip", "opt", "deberta-v2", "xlm"])
def test_hidden_width_that_sizes_heads_is_proved_with_the_inside_of_each_attention(model_type):
    """Query, key and value apart or fused, in order or head by head; self and cross attention; several towers."""
    config = AutoConfig.for_model(model_type)
    model_class = AutoModel._model_mapping[type(config)]
    for axis in discover(config, model_class).named("hidden"):
        assert axis.size_multiple > 1 and len(axis.groups) > 1
        verification = verify_cut(config, model_class, axis)
        assert verification.holds, verification.reason


@pytest.mark.parametrize("model_class", [Gemma3ForCausalLM, GemmaForCausalLM, BioGptForCausalLM])
def test_scaled_embeddings_keep_their_size_and_tied_heads_theirs(model_class):
    """Embeddings times the root of the width; norms that multiply with 1 + weight, and with weight and bias."""
    config = AutoConfig.for_model(model_class.config_class.model_type)
    assert config.tie_word_embeddings
    (axis,) = discover(config, model_class).named("hidden")
    verification = verify_cut(config, model_class, axis)
    assert verification.holds, verification.reason
    assert {slot.power for slot in axis.slots} >= {-0.5, 0.5}


def test_a_norm_without_weights_is_told_the_width():
    config = AutoConfig.for_model("olmo")
    model_class = AutoModel._model_mapping[type(config)]
    assert verify_cut(config, model_class, discover(config, model_class).named("hidden")[0]).holds


def test_queries_that_are_not_scaled_are_noticed():
    """Narrower heads divide by a smaller root: a cut that forgets it differs."""
    config = tiny(AutoConfig.for_model("bert"))
    model = randomize_weights_(BertModel(config))
    axis = discover(config, BertModel).named("hidden")[0]
    careless = dataclasses.replace(axis, slots=tuple(dataclasses.replace(s, power=0.0) for s in axis.slots))
    kept = equivalence._pattern(axis, model)
    assert compare(model, axis, kept).holds
    assert "differ by" in compare(model, careless, kept).reason


def test_heads_that_share_a_norm_are_proved_with_the_norm_told():
    """Some width that a norm sees is another function of what stays: the norm has to count the kept coordinates."""
    config = AutoConfig.for_model("olmo2")
    model_class = AutoModel._model_mapping[type(config)]
    (axis,) = discover(config, model_class).named("kv_groups")
    assert verify_cut(config, model_class, axis).holds
    norms = norms_along(model_class(tiny(config)), discover(tiny(config), model_class).named("kv_groups")[0])
    assert sorted(norms) == [f"layers.{i}.self_attn.{name}" for i in range(2) for name in ("k_norm", "q_norm")]


def test_norms_of_groups_of_channels_are_not_told(monkeypatch):
    """Other channels would come together; a norm over all channels may be told."""
    config = AutoConfig.for_model("bit", hidden_sizes=[64, 64], depths=[1, 1], num_groups=2, embedding_size=64)
    model_class = AutoModel._model_mapping[type(config)]
    axis = next(a for a in discover(config, model_class).axes if a.kind.is_residual)
    assert not verify_cut(config, model_class, axis).holds


@pytest.mark.parametrize(
    ("model_type", "alike"),
    [("wav2vec2", 16), ("canine", 8), ("swin", 1), ("convnextv2", 1), ("longformer", 1), ("gemma4_text", 1)],
)
def test_hidden_widths_of_all_kinds_are_proved(model_type, alike):
    """In shares, stage by stage, in stages wider than the config says, with global maps beside, in layers that differ."""
    config = AutoConfig.for_model(model_type)
    model_class = AutoModel._model_mapping[type(config)]
    axes = discover(config, model_class).named("hidden")
    assert (
        all(axis.equal_parts(EVERYWHERE) == alike and verify_cut(config, model_class, axis).holds for axis in axes)
        and axes
    )


def test_query_heads_beside_their_groups_are_proved():
    """MQA has one group, which is kept."""
    config = AutoConfig.for_model("mistral", num_key_value_heads=1, num_attention_heads=8)
    model_class = AutoModel._model_mapping[type(config)]
    heads, groups = (discover(config, model_class).named(name)[0] for name in ("heads", "kv_groups"))
    assert verify_cut(config, model_class, heads).holds
    assert verify_cut(config, model_class, groups).reason == "there is only one unit"


@pytest.mark.parametrize(("model_type", "groups"), [("t5", 2), ("umt5", 12)])
def test_heads_that_share_a_table_of_biases_go_together(model_type, groups):
    """T5's first block holds the biases of its whole stack; UMT5 has a table in every block."""
    config = AutoConfig.for_model(model_type, num_layers=6, num_decoder_layers=6)
    model_class = AutoModel._model_mapping[type(config)]
    (axis,) = discover(config, model_class).named("heads")
    assert len(axis.groups) == groups
    assert verify_cut(config, model_class, axis).holds


@pytest.mark.parametrize(("kind", "divides"), [("t5", True), ("umt5", True), ("mt5", False)])
def test_a_head_that_divides_by_the_root_of_the_width_is_cut_with_it(kind, divides):
    config = tiny(AutoConfig.for_model(kind))
    model_class = class_for(config, "AutoModelForSeq2SeqLM")
    (axis,) = discover(config, model_class).named("hidden")
    assert [slot.name for slot in axis.slots if slot.power] == ["decoder.final_layer_norm.weight"] * divides
    assert verify_cut(config, model_class, axis).holds


def test_a_t5_that_does_not_scale_its_states_has_nothing_taken_back():
    config = tiny(AutoConfig.for_model("t5", tie_word_embeddings=False))
    assert not config.scale_decoder_outputs
    (axis,) = discover(config, T5ForConditionalGeneration).named("hidden")
    assert not any(slot.power for slot in axis.slots)
    assert verify_cut(config, T5ForConditionalGeneration, axis).holds


def test_a_wrong_layout_is_refused():
    """Gate and up lie one after the other in ModernBERT; read as neighbours, the cut is wrong and must be noticed."""
    config = tiny(AutoConfig.for_model("modernbert"))
    model = randomize_weights_(AutoModel.from_config(config))
    axis = discover(config, type(model)).named("ffn")[0]
    slots = tuple(
        s if s.layout.parts == (1,) else s.__class__(s.name, s.dim, s.group, s.consumes, Layout((2,)))
        for s in axis.slots
    )
    wrong = axis.__class__(axis.name, axis.config_field, axis.size, slots)
    kept = {g: list(range(0, axis.size, 2)) for g in axis.groups}
    assert not compare(model, wrong, kept).holds


def test_a_cut_that_forgets_a_slot_is_refused():
    config = tiny(AutoConfig.for_model("bert"))
    model = randomize_weights_(BertModel(config))
    axis = discover(config, BertModel).named("ffn")[0]
    forgetful = axis.__class__(axis.name, axis.config_field, axis.size, axis.slots[1:])
    with pytest.raises((RuntimeError, AssertionError), match="mismatch"):
        compare(model, forgetful, equivalence._pattern(axis, model))


def test_a_dead_axis_has_no_power():
    """Weights that leave the FFN without effect must not verify its cut."""
    config = tiny(AutoConfig.for_model("bert"))
    model = randomize_weights_(BertModel(config))
    for layer in model.encoder.layer:
        layer.output.dense.weight.data.zero_()
    axis = discover(config, BertModel).named("ffn")[0]
    verification = compare(model, axis, equivalence._pattern(axis, model))
    assert not verification.holds
    assert "could not detect a wrong cut" in verification.reason


def test_the_very_pattern_that_will_be_cut_is_proved():
    config = AutoConfig.for_model("gemma3_text")
    model_class = AutoModel._model_mapping[type(config)]
    axis = discover(config, model_class).named("layers")[0]
    kept = {axis.groups[0]: [i for i in range(axis.size) if i % 3]}
    assert verify_cut(config, model_class, axis, kept).holds


def test_layers_that_are_built_differently_hold_their_position():
    config = AutoConfig.for_model("modernbert")
    model_class = AutoModel._model_mapping[type(config)]
    axis = discover(config, model_class).named("layers")[0]
    assert removable_layers(config, model_class, axis) == list(range(1, config.num_hidden_layers))


def test_what_cannot_be_proved_is_refused_with_the_reason():
    config = AutoConfig.for_model("bert")
    heads = discover(config, BertModel).named("heads")[0]
    assert "the stock config cannot express" in verify_cut(config, BertModel, heads).reason


def test_lively_parameters_are_never_zero_and_drawn_around_their_purpose():
    model = randomize_weights_(BertModel(tiny(AutoConfig.for_model("bert"))))
    assert all((p != 0).all() for p in model.parameters())
    norm = model.encoder.layer[0].output.LayerNorm
    assert 0.7 < norm.weight.mean() < 1.3
    assert norm.bias.abs().max() > 0.1


def test_example_inputs_are_the_same_each_time():
    model = randomize_weights_(BertModel(tiny(AutoConfig.for_model("bert"))))
    one, two = outputs_of(model, example_inputs(model)), outputs_of(model, example_inputs(model))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_tower_that_a_text_does_not_reach_is_proved_where_it_stands():
    config = AutoConfig.for_model("llava")
    model_class = AutoModel._model_mapping[type(config)]
    small = tiny(config)
    axis = discover(small, model_class).named("vision.ffn")[0]
    model = randomize_weights_(model_class(small))
    kept = equivalence._pattern(axis, model)
    alone = example_inputs(model)
    assert set(alone) == {"input_ids", "attention_mask"}
    case = comparison._Case(model, cut(model, axis, kept), axis, kept, "")
    whole = comparison._compare_ablated(case, alone, outputs_of(model, alone))
    assert "changes the output by only 0.0e+00" in whole.reason
    assert compare(model, axis, kept).holds


def test_a_cut_that_is_wrong_as_a_whole_is_not_excused_by_a_part(monkeypatch):
    """The sinusoidal positions of a CTRL depend on its hidden width: the whole model decides, no model inside is run."""
    submodels = []
    narrowed = comparison._compare_narrowed
    recording = lambda case, *rest: submodels.append(case.submodel) or narrowed(case, *rest)  # noqa: E731
    monkeypatch.setitem(comparison.COMPARISONS, "narrowed_outputs", recording)
    config = tiny(AutoConfig.for_model("ctrl"))
    model = randomize_weights_(AutoModel.from_config(config))
    axis = discover(config, type(model)).named("hidden")[0]
    verification = compare(model, axis, equivalence._pattern(axis, model))
    assert "differ by" in verification.reason and {*submodels} == {""}


def test_a_cut_that_does_not_run_as_a_whole_is_not_excused_by_a_part(monkeypatch):
    config = tiny(AutoConfig.for_model("llava"))
    model = randomize_weights_(AutoModel._model_mapping[type(config)](config))
    axis = discover(config, type(model)).named("text.ffn")[0]
    smaller = cut(model, axis, equivalence._pattern(axis, model))
    broken = torch.nn.Linear(7, 7)
    monkeypatch.setattr(comparison, "cut", lambda *_: smaller)
    smaller.language_model.layers[0].mlp.up_proj = broken
    verification = compare(model, axis, equivalence._pattern(axis, model))
    assert (
        not verification.holds
        and "the cut model cannot be run: RuntimeError: mat1 and mat2 shapes" in verification.reason
    )


def test_rows_of_the_vocabulary_go_and_tokens_that_are_named_stay():
    config = tiny(AutoConfig.for_model("llama", eos_token_id=2, bos_token_id=1, pad_token_id=50))
    model = randomize_weights_(LlamaForCausalLM(config))
    axis = discover(config, LlamaForCausalLM).named("vocabulary")[0]
    rows = [1, 2, 7, 20, 50, 98]
    smaller = cut(model, axis, {axis.groups[0]: rows})
    assert (smaller.config.vocab_size, smaller.config.pad_token_id, smaller.config.eos_token_id) == (6, 4, 1)
    assert smaller.generation_config.eos_token_id == 1
    new = torch.tensor([[0, 3, 5, 2]])
    with torch.no_grad():
        expected = model(torch.tensor(rows)[new]).logits[..., rows]
        torch.testing.assert_close(smaller(new).logits, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="pad_token_id 50 is not among the 5 rows"):
        cut(model, axis, {axis.groups[0]: [1, 2, 7, 20, 98]})


def test_what_a_config_says_by_layer_goes_with_the_layers():
    config = AutoConfig.for_model("dinov2")
    kept = [i for i in range(12) if i not in (3, 11)]
    shorter = resized(config, "num_hidden_layers", 10, kept)
    assert shorter.out_features == ["stage10"] and len(shorter.stage_names) == 11
    named = AutoConfig.for_model("bert", num_labels=3)
    assert resized(named, "num_hidden_layers", 2, [4, 7]).num_labels == 3
    pictures = AutoConfig.for_model("qwen2_5_vl_vision", fullatt_block_indexes=[7, 15, 23, 31])
    kept = [i for i in range(32) if i not in (3, 15)]
    assert resized(pictures, "depth", 30, kept).fullatt_block_indexes == [6, 21, 29]
    gemma = AutoConfig.for_model("gemma4_text")
    kept = [0, 1, 2, 3, 4, 5, 11]
    assert resized(gemma, "num_hidden_layers", 7, kept).to_dict()["per_layer_config"].keys() == {"5", "6"}


def test_an_ffn_twice_as_wide_as_the_stream_is_no_attention():
    """Where heads went before, the attention's inner width is no longer the stream's."""
    config = tiny(AutoConfig.for_model("dinov2"))
    model_class = AutoModel._model_mapping[type(config)]
    for kind in ("ffn", "heads"):
        (axis,) = discover(config, model_class).named(kind)
        config = cut_config(config, axis, axis.size // 2)
    (axis,) = discover(config, model_class).named("hidden")
    assert axis.groups == ("model",)
    verification = verify_cut(config, model_class, axis)
    assert verification.holds, verification.reason
