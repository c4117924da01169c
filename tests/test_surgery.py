import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, BertModel

from hf_pe.anatomy import discover
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.dummies.tiny import randomize_weights_, tiny
from hf_pe.surgery import cast, cut, main_dtype

CAUSAL = ["llama", "qwen3", "gemma3_text", "gpt2"]


def ffn_of(model):
    return discover(model.config, type(model)).named("ffn")[0]


def every_other(axis):
    return {group: list(range(0, axis.size, 2)) for group in axis.groups}


def test_the_given_model_is_left_alone():
    model = randomize_weights_(BertModel(tiny(AutoConfig.for_model("bert"))))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    axis = ffn_of(model)
    smaller = cut(model, axis, every_other(axis))
    assert smaller.config.intermediate_size == axis.size // 2
    assert model.config.intermediate_size == axis.size
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["ffn", "layers"])
def test_training_the_cut_model_in_place_leaves_the_original_alone(name):
    model = randomize_weights_(BertModel(tiny(AutoConfig.for_model("bert"), depth=True)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    axis = discover(model.config, BertModel).named(name)[0]
    smaller = cut(model, axis, every_other(axis))
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter.zero_()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("model_type", ["bert", "modernbert", "t5", "vit", "whisper", *CAUSAL])
def test_a_cut_model_reloads_with_stock_classes_to_the_bit(model_type, tmp_path):
    config = tiny(AutoConfig.for_model(model_type))
    model = randomize_weights_(AutoModel.from_config(config))
    axis = ffn_of(model)
    smaller = cut(model, axis, every_other(axis))
    smaller.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert not [n for n, t in [*smaller.named_parameters(), *smaller.named_buffers()] if t.is_meta]
    inputs = example_inputs(model)
    assert difference(outputs_of(smaller, inputs), outputs_of(again, inputs)) == 0


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "phi3", "mistral", "gemma3_text", "vit"])
def test_a_model_with_fewer_heads_reloads_with_stock_classes_to_the_bit(model_type, tmp_path):
    config = tiny(AutoConfig.for_model(model_type))
    model = randomize_weights_(AutoModel.from_config(config))
    axis = next(a for a in discover(config, type(model)).axes if a.kind.is_heads)
    smaller = cut(model, axis, every_other(axis))
    smaller.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert again.config.num_attention_heads == config.num_attention_heads // 2
    inputs = example_inputs(model)
    assert difference(outputs_of(smaller, inputs), outputs_of(again, inputs)) == 0


@pytest.mark.parametrize("model_type", CAUSAL)
def test_ties_attention_kinds_generation_and_dtype_survive(model_type):
    config = tiny(AutoConfig.for_model(model_type, tie_word_embeddings=True))
    model = randomize_weights_(AutoModelForCausalLM.from_config(config))
    model.generation_config.max_new_tokens = 3
    axis = ffn_of(model)
    smaller = cut(model, axis, every_other(axis))
    assert smaller.get_output_embeddings().weight is smaller.get_input_embeddings().weight
    assert smaller.generation_config.max_new_tokens == 3
    inputs = example_inputs(smaller)
    assert smaller.generate(**inputs, do_sample=False).shape[1] > inputs["input_ids"].shape[1]
    plain = outputs_of(smaller, inputs)
    smaller.set_attn_implementation("eager")
    assert difference(plain, outputs_of(smaller, inputs)) < 1e-5
    half = cut(model.to(torch.bfloat16), axis, every_other(axis))
    assert half.dtype == torch.bfloat16


def test_depth_keeps_the_named_layers_in_order():
    config = tiny(AutoConfig.for_model("bert", num_hidden_layers=5), depth=True)
    model = randomize_weights_(BertModel(config))
    axis = discover(config, BertModel).named("layers")[0]
    smaller = cut(model, axis, {"encoder.layer": [0, 3, 4]})
    for new, old in enumerate([0, 3, 4]):
        kept, original = smaller.encoder.layer[new].state_dict(), model.encoder.layer[old].state_dict()
        assert all(torch.equal(kept[k], original[k]) for k in original)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"nowhere": [0]}, "expected the groups"),
        ({"encoder.layer.0": [0, 1], "encoder.layer.1": [0]}, "same number"),
        ({"encoder.layer.0": [1, 0], "encoder.layer.1": [0, 1]}, "expected rising indices"),
        ({"encoder.layer.0": [0, 99], "encoder.layer.1": [0, 1]}, "within 0"),
    ],
)
def test_impossible_cuts_are_refused(kept, message):
    model = randomize_weights_(BertModel(tiny(AutoConfig.for_model("bert"))))
    with pytest.raises(ValueError, match=message):
        cut(model, ffn_of(model), kept)


@pytest.mark.parametrize(
    ("model_type", "name", "units", "message"),
    [
        ("mistral", "heads", [0, 1, 2, 4], "expected as many in each of its 4 key-value groups"),
        ("wav2vec2", "hidden", range(16), "expected the same units in each of its 16 parts of 2"),
    ],
)
def test_units_that_are_bound_together_go_together(model_type, name, units, message):
    config = tiny(AutoConfig.for_model(model_type))
    model = randomize_weights_(AutoModel.from_config(config))
    (axis,) = discover(config, type(model)).named(name)
    kept = {group: axis.first_units(group, 16 if name == "hidden" else 4) for group in axis.groups}
    cut(model, axis, kept)
    with pytest.raises(ValueError, match=message):
        cut(model, axis, kept | {axis.groups[0]: list(units)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "model_type", ["llama", "gemma3_text", "gpt_neox", "bert", "modernbert", "vit", "t5", "resnet", "mixtral", "clip"]
)
def test_a_model_is_cast_as_loading_in_that_dtype_casts_it(model_type, dtype, tmp_path):
    sizes = {"resnet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}}
    config = AutoConfig.for_model(model_type, **sizes.get(model_type, {}))
    model = randomize_weights_(AutoModel.from_config(config if model_type in sizes else tiny(config)))
    model.save_pretrained(tmp_path / "plain")
    made = cast(model, dtype)
    made.save_pretrained(tmp_path / "cast")
    assert made.dtype == dtype and model.dtype == torch.float32
    loaded = [AutoModel.from_pretrained(tmp_path / "plain", dtype=dtype), AutoModel.from_pretrained(tmp_path / "cast")]
    for other in loaded:
        theirs = dict([*other.named_parameters(), *other.named_buffers()])
        for name, tensor in [*made.named_parameters(), *made.named_buffers()]:
            assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in example_inputs(model).items()}
    assert difference(outputs_of(made, inputs), outputs_of(loaded[1], inputs)) == 0


def test_a_model_in_the_dtype_asked_for_is_copied():
    model = randomize_weights_(AutoModel.from_config(tiny(AutoConfig.for_model("t5")))).to(torch.float16)
    made = cast(model, torch.float16)
    places = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not [name for name, tensor in made.state_dict().items() if tensor.data_ptr() in places]


def mixed(parts, dtype=torch.bfloat16):
    """A language model of which some parts are in float32, and what it is in each."""
    config = tiny(AutoConfig.for_model("llama", tie_word_embeddings=False))
    model = randomize_weights_(AutoModelForCausalLM.from_config(config)).to(dtype)
    for part in parts:
        model.get_submodule(part).float().weight.data.normal_()  # what 16 bits cannot hold
    return model, {name: parameter.dtype for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "parts", [["lm_head"], ["model.embed_tokens"], ["model.norm", "model.layers.0.input_layernorm"]]
)
@pytest.mark.parametrize("name", ["ffn", "layers"])
def test_what_is_in_float32_in_a_model_of_16_bits_stays_so(parts, name):
    model, dtypes = mixed(parts)
    assert main_dtype(model) == torch.bfloat16
    axis = discover(model.config, type(model)).named(name)[0]
    kept = every_other(axis) if name == "ffn" else {group: [0] for group in axis.groups}
    smaller = cut(model, axis, kept)
    assert all(parameter.dtype == dtypes[each] for each, parameter in smaller.named_parameters())
    for part in parts:
        assert torch.equal(smaller.get_submodule(part).weight, model.get_submodule(part).weight)


def test_what_a_class_keeps_in_float32_stays_so_when_it_is_cut_and_loaded_again(tmp_path):
    config = tiny(AutoConfig.for_model("ernie4_5_moe"))
    randomize_weights_(AutoModelForCausalLM.from_config(config)).save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert {*dtypes.values()} == {torch.bfloat16, torch.float32}
    axis = discover(model.config, type(model)).named("ffn")[0]
    smaller = cut(model, axis, every_other(axis))
    assert {name: parameter.dtype for name, parameter in smaller.named_parameters()} == dtypes
    smaller.save_pretrained(tmp_path / "small")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert all(torch.equal(one, two) for one, two in zip(smaller.parameters(), again.parameters(), strict=True))
