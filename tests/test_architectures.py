"""A sample of architectures: what docs/architectures.json says of them is so, and what is cut works on."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartForSequenceClassification,
    T5ForConditionalGeneration,
)

from hf_pe.anatomy import discover
from hf_pe.dummies.inputs import example_inputs, with_end_token
from hf_pe.dummies.outputs import difference, no_cache, outputs_of
from hf_pe.dummies.tiny import randomize_weights_, tiny
from hf_pe.padding import lacks_padding, padding_id
from hf_pe.surgery import cut
from hf_pe.tasks.prepare import positions
from hf_pe.verify.comparison import Verification
from hf_pe.verify.equivalence import _pattern, verify_cut

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("coverage_script", ROOT / "scripts" / "coverage.py")
coverage = importlib.util.module_from_spec(spec)
spec.loader.exec_module(coverage)

TYPES = [
    "albert", "aria", "bamba", "bart", "bert", "bloom", "bros", "clip", "clipseg", "convnext", "data2vec-audio",
    "dbrx", "deberta-v2", "deepseek_v3", "deit", "dinov2", "distilbert", "electra", "falcon", "gemma",
    "gemma3_text", "glm4_moe", "glm_ocr_text", "gpt2", "gpt_neox", "gpt_oss", "granitemoe", "hubert", "jamba",
    "llama", "llava", "longformer", "mamba", "marian", "mbart", "mistral", "mixtral", "modernbert", "mpnet", "mpt",
    "nemotron", "olmo2", "olmoe", "opt", "parakeet_rnnt", "pegasus", "phi3", "phimoe", "qwen2", "qwen2_moe",
    "qwen3", "qwen3_moe", "qwen3_vl_text", "roberta", "siglip", "smollm3", "stablelm", "starcoder2", "swin", "t5",
    "vit", "wav2vec2", "whisper", "xlm-roberta",
]  # fmt: skip
"""With BROS, which needs boxes; like Qwen3-VL's and GLM-OCR's texts and Parakeet its config has no end token."""
ROWS = json.loads((ROOT / "docs" / "architectures.json").read_text("utf-8"))


PROVED = {
    "ffn": [
        "bert", "roberta", "distilbert", "mpnet", "modernbert", "llama", "qwen3", "gemma3_text", "gpt2", "t5", "vit",
        "whisper",
    ],
    "kv_groups": ["llama", "qwen2", "qwen3", "mistral", "gemma3_text", "smollm3", "phi3", "mixtral", "qwen3_moe"],
    "heads": ["vit", "deit", "t5"],
    "hidden": [
        "llama", "qwen2", "qwen3", "mistral", "smollm3", "phi3", "mixtral", "qwen3_moe", "olmo2", "t5", "vit", "gemma",
        "gemma3_text", "bert", "roberta", "distilbert", "mpnet", "deberta-v2", "bart", "gpt2", "opt", "clip", "whisper",
    ],
    "experts": [
        "mixtral", "qwen3_moe", "qwen2_moe", "olmoe", "gpt_oss", "phimoe", "glm4_moe", "granitemoe", "deepseek_v3",
    ],
    "vocabulary": ["bert", "llama", "gpt2", "t5", "bart", "clip"],
}  # fmt: skip
PROVED["layers"], PROVED["expert_ffn"] = [*PROVED["ffn"], "convnext"], PROVED["experts"]
"""What users rely on: with fused projections, head sizes that the config does not tell, routers, towers."""


@pytest.mark.parametrize("kind", PROVED)
def test_what_is_relied_on_is_proved(kind):
    for model_type in PROVED[kind]:
        mine = [e for e in ROWS if e["model_type"] == model_type and e["axis"] and coverage.kind(e["axis"]) == kind]
        assert mine and all(each["status"] == "verified" for each in mine), mine


def built(model_type):
    config = AutoConfig.for_model(model_type)
    return tiny(config), AutoModel._model_mapping[type(config)]


@pytest.mark.parametrize("model_type", TYPES)
def test_the_table_says_what_is_so(model_type):
    found = {each["axis"]: each["status"] for each in coverage.rows(model_type, 300, heads=False)}
    assert found == {each["axis"]: each["status"] for each in ROWS if each["model_type"] == model_type}


def test_no_config_is_asked_for_a_field_that_it_lacks():
    """A third of the types have no field for an end token."""
    unbuilt = {each["model_type"] for each in ROWS if each["status"] == "cannot_build"}
    configs = [each for each in AutoModel._model_mapping if each.__module__.startswith("transformers.")]
    lacking = 0
    for model_type in {each.model_type for each in configs} - unbuilt:
        config = AutoConfig.for_model(model_type, **coverage.NEEDED.get(model_type, {}))
        inputs = {"input_ids": torch.tensor([[1, 2]])}
        assert "input_ids" in with_end_token(inputs, BartForSequenceClassification, config)
        lacking += not hasattr(config.get_text_config(), "eos_token_id")
        assert padding_id(config) is None or padding_id(config) >= 0
        assert lacks_padding(config) in (True, False)
        assert positions(config) is None or positions(config) > 0
    assert lacking > 100


def test_a_row_is_refused_where_a_head_is(monkeypatch):
    config = AutoConfig.for_model("t5", decoder_start_token_id=0)
    bare = [coverage.row("t5", "hidden", "verified", "", True)]
    monkeypatch.setattr(coverage, "head_classes", lambda config: [T5ForConditionalGeneration])
    (each,) = coverage.with_heads(config, copy.deepcopy(bare))
    assert (each["status"], each["classes"]) == ("verified", ["T5ForConditionalGeneration"])
    monkeypatch.setattr(coverage, "verify_cut", lambda *_, **__: Verification("hidden", False, "they differ"))
    (each,) = coverage.with_heads(config, bare)
    assert (each["status"], each["reason"]) == ("refused", "T5ForConditionalGeneration: they differ")
    assert all("T5ForConditionalGeneration" in row["classes"] for row in ROWS if row["model_type"] == "t5")


def test_an_axis_that_is_no_longer_verified_is_named():
    verified, refused = (coverage.row("bert", "ffn", status, "", True) for status in ("verified", "refused"))
    other = coverage.row("gpt2", "ffn", "verified", "", True)
    assert coverage.lost_axes([verified, other], [verified]) == []
    assert coverage.lost_axes([refused], [verified]) == []
    assert coverage.lost_axes([verified, other], [refused | {"reason": "they differ"}]) == ["bert ffn: they differ"]
    assert coverage.lost_axes([verified], [coverage.row("bert", None, "refused", "too long", False)])


def test_the_table_has_every_type_and_gives_reasons():
    assert len(TYPES) >= 60
    assert {each["model_type"] for each in ROWS} == {
        config.model_type for config in AutoModel._model_mapping if config.__module__.startswith("transformers.")
    }
    assert all(each["reason"] for each in ROWS if each["status"] != "verified")
    assert {each["status"] for each in ROWS} <= {"verified", "refused", "cannot_build"}
    page = (ROOT / "docs" / "architectures.md").read_text("utf-8")
    counts = coverage.verified_types(ROWS)
    assert all(f"| {axis} | {counts[axis]} |" in page for axis in coverage.AXES)


GENERATING = [
    ("llama", AutoModelForCausalLM), ("gpt2", AutoModelForCausalLM), ("qwen3", AutoModelForCausalLM),
    ("gemma3_text", AutoModelForCausalLM), ("mixtral", AutoModelForCausalLM), ("bart", AutoModelForSeq2SeqLM),
    ("t5", AutoModelForSeq2SeqLM), ("falcon", AutoModelForCausalLM), ("phi3", AutoModelForCausalLM),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "auto_class"), GENERATING, ids=[name for name, _ in GENERATING])
def test_what_is_cut_works_on(model_type, auto_class, tmp_path):
    """Nothing on meta, ties intact, eager and sdpa agree, generates, reloads to the bit, bfloat16."""
    config = tiny(AutoConfig.for_model(model_type))
    model = randomize_weights_(auto_class.from_config(config))
    for kind in ("ffn", "experts", "kv_groups", "heads", "vocabulary"):
        for axis in discover(model.config, type(model)).axes:
            if axis.kind.name == kind and axis.size > 2 and verify_cut(model.config, type(model), axis).holds:
                model = cut(model, axis, _pattern(axis, model))
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    if model.config.get_text_config().tie_word_embeddings:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    inputs = example_inputs(model)
    expected = outputs_of(model, inputs)
    for kind in ("eager", "sdpa"):
        model.set_attn_implementation(kind)
        assert difference(expected, outputs_of(model, inputs)) < 1e-4
    text = {k: v for k, v in inputs.items() if not k.startswith("decoder")}
    start = {"decoder_start_token_id": 0} if model.config.is_encoder_decoder else {}
    generated = model.generate(**text, **start, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert generated.max() < model.config.get_text_config().vocab_size
    model.save_pretrained(tmp_path)
    again = auto_class.from_pretrained(tmp_path).eval()
    assert difference(outputs_of(model, inputs), outputs_of(again, inputs)) == 0
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert all(torch.isfinite(each).all() for each in outputs_of(half, inputs))


@pytest.mark.slow
@pytest.mark.parametrize(
    "model_type",
    ["llama", "bert", "gpt2", "gemma3_text", "qwen3_moe", "modernbert", "t5", "vit", "convnext", "whisper"],
)
def test_what_is_cut_compiles(model_type):
    config, model_class = built(model_type)
    model = randomize_weights_(model_class(config))
    for kind in ("ffn", "hidden"):
        for axis in [a for a in discover(config, model_class).axes if a.kind.name == kind]:
            model = cut(model, axis, _pattern(axis, model))
            config = model.config
    inputs = example_inputs(model)
    expected = outputs_of(model, inputs)
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        generated = compiled(**inputs, **no_cache(model))
    assert difference(expected[:1], [generated[0]]) < 1e-4
