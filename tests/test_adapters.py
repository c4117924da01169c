"""Adapters of PEFT become part of the weights: over plain and packed bases, exactly and once."""

import json

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from hf_pe import BitsAndBytesQuantization, dequantize_checkpoint, quantize_checkpoint
from hf_pe.adapters import merged, read_adapter
from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.source import resolve
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import UsageError
from hf_pe.quantizers.layers import plain_linear_layers
from hf_pe.quantizers.registry import dequantized, dequantized_weight
from hf_pe.recipe import StageState
from tests.helpers import saved

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of PEFT, about embeddings that are tied
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def bases(llama_folder, tokenizer, tmp_path_factory):
    """The folder of a small Llama whose rest is in bfloat16: packed in NF4, and plain."""
    folder = tmp_path_factory.mktemp("bases")
    plain = LlamaForCausalLM.from_pretrained(llama_folder, dtype=torch.bfloat16).eval()
    recipe = BitsAndBytesQuantization()
    saved(folder / "nf4", recipe.carry_out(StageState(plain, None)).model, tokenizer)
    saved(folder / "plain", plain, tokenizer)
    return folder


def with_adapter(base, folder, size=1e-3, rows=None, **changes):
    """Save an adapter whose effect is far below what rounding to 4 bits costs; returns the model that it makes."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    settings = peft.LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": LINEAR, "task_type": "CAUSAL_LM", **changes}
    )
    learner = peft.get_peft_model(model, settings).eval()
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name or "trainable_tokens_delta" in name:
                parameter.normal_(0, size)
            if "modules_to_save" in name or "magnitude" in name:
                parameter.mul_(1 + size * torch.randn_like(parameter))
    learner.peft_config["default"].base_model_name_or_path = str(base)
    learner.save_pretrained(folder)
    return learner


def exact(learner):
    """By name, the float32 weights that a LoRA over packed weights stands for."""
    layers = {n: m for n, m in learner.get_base_model().named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    return {
        n: dequantized_weight(m.get_base_layer()).float() + m.get_delta_weight("default") for n, m in layers.items()
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dequantize_merges_an_adapter_into_unpacked_weights_and_rounds_once(bases, dtype, tmp_path):
    weights = exact(with_adapter(bases / "nf4", tmp_path / "adapter"))
    dequantize_checkpoint(str(tmp_path / "adapter"), tmp_path / "plain", dtype=dtype)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert plain.dtype == getattr(torch, dtype)
    for name, weight in weights.items():
        assert torch.equal(plain.get_parameter(f"{name}.weight"), weight.to(plain.dtype)), name
    assert (tmp_path / "plain" / "tokenizer.json").is_file()


@pytest.mark.parametrize("base", ["nf4", "plain"])
def test_quantize_packs_an_adapter_with_its_base_once(bases, base, tmp_path):
    learner = with_adapter(bases / base, tmp_path / "adapter", size=0.1)
    source = resolve(str(tmp_path / "adapter"))
    config = load_config(source)
    assert not hasattr(config, "quantization_config")
    whole = load_model(source, class_for(config))
    if base == "nf4":
        for name, weight in exact(learner).items():
            assert torch.equal(whole.get_parameter(f"{name}.weight"), weight.bfloat16()), name
    recipe = BitsAndBytesQuantization()
    expected = recipe.carry_out(StageState(whole, None)).model
    quantize_checkpoint(str(tmp_path / "adapter"), tmp_path / "small")
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    for name in plain_linear_layers(whole, recipe.modules_to_not_convert(whole)):
        one, other = (dequantized_weight(model.get_submodule(name)) for model in (expected, small))
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("changes", "tied"),
    [
        ({"use_dora": True}, True),
        ({"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"up_proj": 3}, "use_rslora": True}, True),
        ({"modules_to_save": ["norm"]}, True),
        ({"modules_to_save": ["embed_tokens"]}, False),
        ({"modules_to_save": ["embed_tokens", "lm_head"], "rows": 208}, False),
        ({"target_modules": [*LINEAR, "embed_tokens"]}, False),
        ({"trainable_token_indices": [5, 6]}, True),
    ],
    ids=["dora", "ranks", "norm", "one of two tied", "resized", "embedding", "tokens"],
)
def test_every_kind_of_adapter_over_nf4_is_merged_as_what_it_was_trained_as(bases, changes, tied, tmp_path):
    """Compared over the unpacked base, since the CPU kernel of 4-bit weights rounds to bfloat16."""
    with_adapter(bases / "nf4", tmp_path / "adapter", size=0.1, **changes)
    packed_base = AutoModelForCausalLM.from_pretrained(bases / "nf4")
    base = dequantized(packed_base, torch.float32)
    if "rows" in changes:
        base.resize_token_embeddings(changes["rows"], mean_resizing=False)
    trained = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    expected = outputs_of(trained, example_inputs(packed_base))
    source = resolve(str(tmp_path / "adapter"))
    config = load_config(source)
    whole = load_model(source, class_for(config), dtype=torch.float32)
    assert {whole.config.vocab_size, config.vocab_size} == {changes.get("rows", 200)}
    assert {whole.config.tie_word_embeddings, config.tie_word_embeddings} == {tied}
    assert all(parameter.requires_grad for parameter in whole.parameters())
    whole.save_pretrained(tmp_path / "whole")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
    assert difference(expected, outputs_of(again, example_inputs(packed_base))) < 1e-5


def test_an_adapter_for_transposed_layers_is_merged(tmp_path):
    model = randomize_weights_(
        GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=200, pad_token_id=0))
    )
    recipe = BitsAndBytesQuantization()
    recipe.carry_out(StageState(model, None)).model.save_pretrained(tmp_path / "nf4")
    learner = with_adapter(
        tmp_path / "nf4", tmp_path / "adapter", target_modules=["c_attn", "c_fc"], fan_in_fan_out=True
    )
    dequantize_checkpoint(str(tmp_path / "adapter"), tmp_path / "plain", dtype="float32")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    for name, weight in exact(learner).items():
        assert torch.equal(plain.get_parameter(f"{name}.weight").T, weight), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}, "PROMPT_TUNING with learned prompts"),
        ({"layer_replication": [[0, 3], [1, 3]]}, "LORA with repeated layers"),
        ({"ensure_weight_tying": True, "target_modules": ["embed_tokens"]}, "ensure_weight_tying"),
    ],
)
def test_adapters_that_cannot_be_merged_are_refused_before_weights_are_read(bases, change, message, tmp_path):
    with_adapter(bases / "plain", tmp_path, target_modules=["q_proj", "embed_tokens"])
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    if "peft_type" in change:
        settings = {key: settings[key] for key in ("task_type", "base_model_name_or_path")}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | change))
    with pytest.raises(UsageError, match=message):
        load_config(resolve(str(tmp_path)))


def test_an_adapter_on_weights_that_cannot_be_unpacked_is_refused(bases, tmp_path):
    with_adapter(bases / "plain", tmp_path / "adapter")
    config = json.loads((bases / "plain" / "config.json").read_text())
    (tmp_path / "gptq").mkdir()
    quantization = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "gptq" / "config.json").write_text(json.dumps(config | quantization))
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "gptq")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match="gptq has quantized, which cannot be dequantized"):
        load_config(resolve(str(tmp_path / "adapter")))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter_config.json", "null", "expected an object"),
        ("adapter_config.json", "[" * 100_000, "not JSON that can be read"),
        ("adapter_config.json", '{"base_model_name_or_path": "BASE"}', "cannot be read"),
        ("adapter_config.json", '{"base_model_name_or_path": "SELF"}', "names another adapter"),
        ("adapter_model.safetensors", "<!doctype html>", "cannot be read"),
    ],
)
def test_a_damaged_adapter_is_a_message(bases, tmp_path, file, content, message):
    with_adapter(bases / "plain", tmp_path)
    content = content.replace("BASE", str(bases / "plain")).replace("SELF", str(tmp_path))
    (tmp_path / file).write_text(content)
    with pytest.raises(UsageError, match=message):
        load_config(resolve(str(tmp_path)))


def test_an_adapter_that_does_not_fit_is_refused(bases, tmp_path):
    with_adapter(bases / "plain", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(bases / "plain")
    adapter = read_adapter(str(tmp_path))
    names = list(adapter.state)
    with pytest.raises(UsageError, match="does not fit LlamaForCausalLM: it has no model"):
        merged(model, adapter._replace(state={name: adapter.state[name] for name in names[1:]}))
    model = AutoModelForCausalLM.from_pretrained(bases / "plain")
    with pytest.raises(UsageError, match=r"the model has no module for model\.other"):
        merged(model, adapter._replace(state=adapter.state | {"base_model.model.model.other.weight": torch.ones(2)}))


@pytest.mark.parametrize("kind", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
def test_learned_prompts_beside_a_models_own_weights_are_refused(llama_folder, tmp_path, kind):
    model = LlamaForCausalLM.from_pretrained(llama_folder)
    model.save_pretrained(tmp_path)
    peft.get_peft_model(model, kind(task_type="CAUSAL_LM", num_virtual_tokens=2)).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"_TUNING with learned prompts.*or the model without an adapter"):
        load_model(resolve(str(tmp_path)), LlamaForCausalLM)
