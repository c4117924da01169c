"""Packed from disk as in memory, and back."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM
from typer.testing import CliRunner

from hf_pe import dequantize_checkpoint, quantize_checkpoint
from hf_pe.cli import app
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import UsageError
from hf_pe.quantize import BitsAndBytesQuantization
from hf_pe.quantizers.registry import dequantized_weight
from hf_pe.recipe import StageState
from tests.helpers import saved


@pytest.fixture(params=["llama", "gpt2"])
def folder(request, llama_folder, tokenizer, tmp_path):
    """In shards, with a tokenizer."""
    if request.param == "llama":
        model = LlamaForCausalLM.from_pretrained(llama_folder)
    else:
        model = randomize_weights_(
            GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=200, pad_token_id=0))
        )
    model.save_pretrained(tmp_path / "model", max_shard_size="100KB")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_from_disk_as_in_memory_and_back(folder, method, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    recipe = BitsAndBytesQuantization(method=method)
    in_memory = recipe.carry_out(StageState(model, None)).model
    quantize_checkpoint(str(folder), tmp_path / "small", recipe)
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
    inputs = example_inputs(model)
    assert difference(outputs_of(in_memory, inputs), outputs_of(small, inputs)) == 0
    assert (tmp_path / "small" / "tokenizer.json").is_file()
    assert small.config.architectures == [type(model).__name__]

    dequantize_checkpoint(str(tmp_path / "small"), tmp_path / "plain", dtype="float32")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert {type(m) for m in plain.modules()} == {type(m) for m in model.modules()}
    assert (tmp_path / "plain" / "tokenizer.json").is_file()
    name = "model.layers.0.mlp.up_proj" if hasattr(model, "model") else "transformer.h.0.mlp.c_fc"
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "small")  # a pass on a CPU rounds scales to bfloat16
    weight, expected = plain.get_parameter(f"{name}.weight"), dequantized_weight(fresh.get_submodule(name))
    assert torch.equal(weight, expected if weight.shape == expected.shape else expected.T)
    close = 0.06 if method == "nf4" else 0.1  # the quantized ones multiply in 16 or 8 bits
    assert difference(outputs_of(plain, inputs), outputs_of(small, inputs)) < close


def test_in_16_bits_by_default(folder, tmp_path):
    quantize_checkpoint(str(folder), tmp_path / "small", BitsAndBytesQuantization(dtype="bfloat16"))
    dequantize_checkpoint(str(tmp_path / "small"), tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert {p.dtype for p in plain.parameters()} == {torch.bfloat16}


def test_what_cannot_be_is_refused_and_nothing_is_written(llama_folder, bert_folder, tokenizer, tmp_path):
    with pytest.raises(UsageError, match="calibration rows"):
        quantize_checkpoint(str(llama_folder), tmp_path / "out", BitsAndBytesQuantization(refit="gptq"))
    with pytest.raises(UsageError, match="quantized by bitsandbytes, got weights that are not quantized"):
        dequantize_checkpoint(str(llama_folder), tmp_path / "out")
    quantize_checkpoint(str(llama_folder), tmp_path / "small")
    with pytest.raises(UsageError, match=r"quantized already \(bitsandbytes\).*hf-pe dequantize"):
        quantize_checkpoint(str(tmp_path / "small"), tmp_path / "out")
    with pytest.raises(UsageError, match="not empty"):
        quantize_checkpoint(str(llama_folder), tmp_path / "small")
    tiny = randomize_weights_(
        GPT2LMHeadModel(GPT2Config(n_embd=32, n_inner=96, n_layer=1, n_head=2, vocab_size=200, n_positions=8))
    )
    with pytest.raises(UsageError, match="no linear layer"):
        quantize_checkpoint(str(saved(tmp_path / "odd", tiny, tokenizer)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_line_does_both(llama_folder, tmp_path):
    small, plain = tmp_path / "small", tmp_path / "plain"
    done = CliRunner().invoke(app, ["quantize", str(llama_folder), "--output", str(small), "--method", "fp4"])
    assert done.exit_code == 0, done.output
    quantization = json.loads((small / "config.json").read_text())["quantization_config"]
    assert quantization["bnb_4bit_quant_type"] == "fp4" and "lm_head" in quantization["llm_int8_skip_modules"]
    done = CliRunner().invoke(app, ["dequantize", str(small), "--output", str(plain)])
    assert done.exit_code == 0, done.output
    assert CliRunner().invoke(app, ["dequantize", str(plain), "--output", str(tmp_path / "x")]).exit_code == 2
    assert CliRunner().invoke(app, ["quantize", str(plain), "--output", "x", "--method", "nf5"]).exit_code == 2
