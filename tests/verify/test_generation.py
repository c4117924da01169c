"""What can generate before a cut can do so afterwards, and says the same with its cache and without."""

import pytest
import torch
from transformers import (
    AutoConfig,
    BertModel,
    LlamaForCausalLM,
    Qwen3NextForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    WhisperForConditionalGeneration,
)

from hf_pe.anatomy import discover, resized
from hf_pe.dummies.tiny import tiny
from hf_pe.errors import UsageError
from hf_pe.model_spec import ModelSpec
from hf_pe.prune import StructuredPruning
from hf_pe.verify import generation
from hf_pe.verify.equivalence import require_generation, verify_cut
from hf_pe.verify.generation import depth_fault, generation_fault
from tests.helpers import bert_config

T5 = T5Config(num_layers=4, num_decoder_layers=4)


def test_fewer_encoder_layers_than_decoder_layers_of_a_t5_are_refused():
    """The cache has as many layers as the encoder, the decoder asks for more."""
    encoder, decoder = discover(T5, T5ForConditionalGeneration).named("layers")
    verification = verify_cut(T5, T5ForConditionalGeneration, encoder)
    assert not verification.holds and verification.reason.startswith(
        "after a cut of this axis alone, the model cannot generate: IndexError"
    )
    assert verify_cut(T5, T5ForConditionalGeneration, decoder).holds
    with pytest.raises(UsageError, match=r"encoder\.layers of T5ForConditionalGeneration .* as many in each tower"):
        require_generation(T5, T5ForConditionalGeneration, {encoder.name: {encoder.groups[0]: [0, 1]}})
    both = {axis.name: {axis.groups[0]: [0, 1]} for axis in (encoder, decoder)}
    require_generation(T5, T5ForConditionalGeneration, both)


def test_the_only_layer_with_full_attention_is_needed_for_the_cache():
    config = AutoConfig.for_model("qwen3_next", num_hidden_layers=4)
    (axis,) = discover(config, Qwen3NextForCausalLM).named("layers")
    verification = verify_cut(config, Qwen3NextForCausalLM, axis, {axis.groups[0]: [0, 1, 2]})
    assert not verification.holds and "cannot generate: ValueError: `get_seq_length`" in verification.reason
    assert verify_cut(config, Qwen3NextForCausalLM, axis, {axis.groups[0]: [0, 2, 3]}).holds


@pytest.mark.parametrize(
    ("model_type", "model_class"), [("llama", LlamaForCausalLM), ("whisper", WhisperForConditionalGeneration)]
)
def test_what_generates_has_no_fault(model_type, model_class):
    config = tiny(AutoConfig.for_model(model_type))
    assert not generation._fault(generation.Architecture.of(config, model_class))
    assert not generation_fault(config, config, model_class)
    assert not depth_fault(config, config, model_class)


def test_a_cache_that_is_wrong_is_noticed(monkeypatch):
    config = tiny(AutoConfig.for_model("llama"))
    model = generation.randomize_weights_(LlamaForCausalLM(config))
    assert generation._fault_of(model, LlamaForCausalLM.generate) == ""
    forward = model.model.layers[0].self_attn.forward

    def forgetful(*args, **kwargs):
        return forward(*args, **{**kwargs, "past_key_values": None})

    monkeypatch.setattr(model.model.layers[0].self_attn, "forward", forgetful)
    assert generation._fault_of(model, LlamaForCausalLM.generate)


def test_what_cannot_be_checked_is_said(monkeypatch):
    config = AutoConfig.for_model("llama", num_hidden_layers=4)
    (axis,) = discover(config, LlamaForCausalLM).named("layers")
    kept = {axis.name: {axis.groups[0]: [0, 1]}}
    assert require_generation(config, LlamaForCausalLM, kept) == ()

    def refuse(*_, **__):
        raise ValueError("no smaller one")

    monkeypatch.setattr(generation, "tiny", refuse)
    assert depth_fault(config, config, LlamaForCausalLM) is None
    (note,) = require_generation(config, LlamaForCausalLM, kept)
    assert "whether LlamaForCausalLM still generates could not be checked" in note
    plan, _ = StructuredPruning(keep={"layers": 2}).dry_run(ModelSpec(config, LlamaForCausalLM))
    assert note in plan.notes


def test_a_want_of_memory_is_no_fault_of_a_model(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    config = tiny(AutoConfig.for_model("llama", num_hidden_layers=3, vocab_size=77))
    monkeypatch.setattr(generation, "randomize_weights_", full)
    with pytest.raises(torch.OutOfMemoryError):
        generation._fault(generation.Architecture.of(config, LlamaForCausalLM))
    monkeypatch.setattr("hf_pe.verify.equivalence.randomize_weights_", full)
    (axis,) = discover(config, LlamaForCausalLM).named("ffn")
    with pytest.raises(torch.OutOfMemoryError):
        verify_cut(config, LlamaForCausalLM, axis)


def test_what_never_generated_is_not_held_against_a_cut():
    assert not generation_fault(bert_config(), bert_config(), BertModel)
    four = AutoConfig.for_model("qwen3_next", num_hidden_layers=4)
    without = resized(four, "num_hidden_layers", 3, [0, 1, 2])
    assert not depth_fault(without, resized(without, "num_hidden_layers", 2), Qwen3NextForCausalLM)
