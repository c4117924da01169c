"""A head in float32 on a body in bfloat16 is kept: in memory, through recipes, in the file; what loading does is said."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from hf_pe import Distillation, StructuredPruning, compress
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.mixed_dtypes import as_stock_loads, differing_dtypes, dtype_warnings
from hf_pe.checkpoints.save import save_model
from hf_pe.checkpoints.source import resolve
from hf_pe.checkpoints.stored import rounding_warnings
from hf_pe.data import load_examples
from hf_pe.layer_dtypes import aligned_dtypes
from hf_pe.recipe import StageState
from hf_pe.tasks import prepare, task_named
from tests.helpers import TEXTS, saved

HEAD = "lm_head.weight"


def with_float32_head(llama_folder):
    """A model in bfloat16 whose head holds what bfloat16 cannot."""
    model = LlamaForCausalLM.from_pretrained(llama_folder, dtype=torch.bfloat16, tie_word_embeddings=False).eval()
    model.lm_head.float().weight.data += 1e-4 * torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    return model


def test_what_from_pretrained_would_round_is_named(llama_folder):
    assert differing_dtypes(with_float32_head(llama_folder)) == {HEAD: torch.float32}
    assert not differing_dtypes(LlamaForCausalLM.from_pretrained(llama_folder))
    wo = T5ForConditionalGeneration(T5Config(d_model=8, d_ff=8, num_layers=1, vocab_size=9)).to(torch.float16)
    for each in (module for name, module in wo.named_modules() if name.endswith(".wo")):
        each.float()  # as the class itself keeps it
    assert not differing_dtypes(wo)


@torch.no_grad()
def test_a_folder_is_loaded_with_its_float32_head(llama_folder, tokenizer, tmp_path):
    model = with_float32_head(llama_folder)
    source = resolve(str(saved(tmp_path, model, tokenizer)))
    loaded = load_model(source, LlamaForCausalLM)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), loaded.parameters(), strict=True))
    ids = torch.arange(3, 9)[None]
    hidden = loaded.model(ids).last_hidden_state
    assert torch.equal(loaded(ids).logits, hidden.float() @ model.lm_head.weight.T)
    assert not rounding_warnings(source, load_config(source), LlamaForCausalLM, loaded)
    (sentence,) = dtype_warnings(loaded)
    assert (
        sentence.startswith("lm_head.weight: kept in float32") and "from_pretrained rounds them to bfloat16" in sentence
    )
    stock = LlamaForCausalLM.from_pretrained(tmp_path)
    assert {each.dtype for each in stock.parameters()} == {torch.bfloat16}
    again = as_stock_loads(loaded)
    assert all(torch.equal(one, two) for one, two in zip(stock.parameters(), again.parameters(), strict=True))


def test_a_dtype_that_is_asked_for_is_that_of_all(llama_folder, tokenizer, tmp_path):
    folder = str(saved(tmp_path, with_float32_head(llama_folder), tokenizer))
    for dtype in ("bfloat16", "float32"):
        source = resolve(folder, dtype=dtype)
        assert {each.dtype for each in load_model(source, LlamaForCausalLM).parameters()} == {getattr(torch, dtype)}
        assert not rounding_warnings(source, load_config(source), LlamaForCausalLM)


def test_a_checkpoint_mostly_in_float32_becomes_what_its_config_says(llama_folder, tokenizer, tmp_path):
    model = LlamaForCausalLM.from_pretrained(llama_folder)
    model.model.norm.bfloat16()
    saved(tmp_path, model, tokenizer)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}), "utf-8")
    source = resolve(str(tmp_path))
    assert not differing_dtypes(load_model(source, LlamaForCausalLM))
    (sentence,) = rounding_warnings(source, load_config(source), LlamaForCausalLM)
    assert "are stored in float32 and become bfloat16" in sentence


def test_layers_compute_in_their_own_dtype_inside_the_block_alone(llama_folder):
    model = with_float32_head(llama_folder)
    ids = torch.arange(3, 9)[None]
    with aligned_dtypes(model):
        assert model(ids).logits.dtype == torch.float32
    with pytest.raises(RuntimeError, match="same dtype"):
        model(ids)


def test_a_mixed_model_in_memory_is_compressed_and_its_file_keeps_the_head(llama_folder, tokenizer, tmp_path):
    model = with_float32_head(llama_folder)
    result = compress(model, [StructuredPruning(keep={"ffn": 0.5})], data=TEXTS, processor=tokenizer, task="causal_lm")
    assert not model.lm_head._forward_pre_hooks
    report = result.save(tmp_path / "small").report
    assert len([each for each in report.warnings if each.startswith("lm_head.weight: kept in float32")]) == 1
    stored = load_file(tmp_path / "small" / "model.safetensors")
    assert {name for name, tensor in stored.items() if tensor.dtype == torch.float32} == {HEAD}
    assert torch.equal(stored[HEAD], model.lm_head.weight)
    assert json.loads((tmp_path / "small" / "config.json").read_text("utf-8"))["dtype"] == "bfloat16"
    assert "lm_head.weight: kept in float32" in (tmp_path / "small" / "README.md").read_text("utf-8")


def test_a_folder_is_pruned_and_trained_with_its_float32_head(llama_folder, tokenizer, tmp_path):
    model = load_model(resolve(str(saved(tmp_path, with_float32_head(llama_folder), tokenizer))), LlamaForCausalLM)
    task = task_named("causal_lm")
    data = replace(prepare(task, load_examples(TEXTS), tokenizer, model.config), teacher=model)
    for recipe in (StructuredPruning(keep={"hidden": 0.5}), Distillation(steps=1)):
        model = recipe.carry_out(StageState(model, data)).model
        assert differing_dtypes(model) == {HEAD: torch.float32}
        with torch.no_grad():
            assert model(torch.arange(3, 9)[None]).logits.dtype == torch.float32


def test_a_first_parameter_in_float32_leaves_the_dtype_of_the_config(llama_folder, tokenizer, tmp_path):
    model = with_float32_head(llama_folder)
    model.lm_head.bfloat16()
    model.model.embed_tokens.float()
    save_model(model, tokenizer, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["dtype"] == "bfloat16"
    loaded = load_model(resolve(str(tmp_path)), LlamaForCausalLM)
    assert differing_dtypes(loaded) == {"model.embed_tokens.weight": torch.float32}


def test_a_stored_head_that_the_model_does_not_hold_is_left_alone(llama_folder, tokenizer, tmp_path):
    folder = saved(tmp_path, with_float32_head(llama_folder), tokenizer)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"lm_head.extra": torch.ones(3)}, folder / "model.safetensors", {"format": "pt"})
    loaded = load_model(resolve(str(folder)), LlamaForCausalLM, config=load_config(resolve(str(folder))))
    assert differing_dtypes(loaded) == {HEAD: torch.float32}
