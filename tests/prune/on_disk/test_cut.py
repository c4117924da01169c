"""Cutting on disk gives what cutting in memory gives, tensor by tensor."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BertModel,
    GenerationConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from hf_pe import StructuredPruning, cut_checkpoint
from hf_pe.anatomy import discover
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.dummies.tiny import randomize_weights_, tiny
from hf_pe.errors import UsageError
from hf_pe.progress import listen
from hf_pe.prune.on_disk.tensors import Stored
from hf_pe.surgery import cut


def small(kind="llama", **changes):
    return randomize_weights_(AutoModelForCausalLM.from_config(tiny(AutoConfig.for_model(kind, **changes))))


def by_hand(model, keep):
    """The same choice with the whole model in memory."""
    for name, size in keep.items():
        axis = discover(model.config, type(model)).named(name)[0]
        state = model.state_dict()
        scores = {group: torch.zeros(axis.size) for group in axis.groups}
        for slot in axis.slots:
            rows = slot.layout.by_unit(slot.of(state).movedim(slot.dim or 0, 0), axis.size)
            scores[slot.group] += rows.float().square().sum(1)
        model = cut(model, axis, {g: sorted(s.topk(size).indices.tolist()) for g, s in scores.items()})
    return model


@pytest.mark.parametrize(
    ("kind", "keep"),
    [("llama", {"ffn": 16, "kv_groups": 2, "hidden": 24}), ("gpt2", {"ffn": 16}), ("phi3", {"ffn": 8, "kv_groups": 2})],
)
def test_on_disk_as_in_memory(kind, keep, tmp_path):
    model = small(kind)
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    cut_checkpoint(str(tmp_path / "model"), tmp_path / "small", keep, shard_size="10KB")
    assert len([*(tmp_path / "small").glob("*.safetensors")]) > 1
    again, expected = AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval(), by_hand(model, keep)
    inputs = example_inputs(again)
    assert difference(outputs_of(expected, inputs), outputs_of(again, inputs)) == 0
    assert again.generation_config.to_diff_dict() == expected.generation_config.to_diff_dict()


@pytest.mark.parametrize(
    ("keep", "heads", "groups"),
    [({"heads": 0.7}, 4, 4), ({"heads": 4}, 4, 4), ({"heads": 0.5, "kv_groups": 2}, 4, 2)],
)
def test_query_heads_on_disk_are_as_many_as_asked(keep, heads, groups, tmp_path):
    config = tiny(AutoConfig.for_model("mistral"))
    config.num_attention_heads, config.num_key_value_heads = 8, 4
    randomize_weights_(AutoModelForCausalLM.from_config(config)).save_pretrained(tmp_path / "model")
    cut_checkpoint(str(tmp_path / "model"), tmp_path / "small", keep)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert (again.config.num_attention_heads, again.config.num_key_value_heads) == (heads, groups)
    assert len(again.model.layers[0].self_attn.q_proj.weight) == heads * config.head_dim


def test_layers_that_are_named_stay(tmp_path):
    config = tiny(AutoConfig.for_model("llama", num_hidden_layers=4), depth=True)
    model = randomize_weights_(AutoModelForCausalLM.from_config(config))
    model.save_pretrained(tmp_path / "model")
    cut_checkpoint(str(tmp_path / "model"), tmp_path / "small", {"layers": [0, 1, 3], "ffn": 0.5})
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert again.config.num_hidden_layers == 3 and again.config.intermediate_size == config.intermediate_size // 2 + 4
    own, old = again.state_dict(), model.state_dict()
    name = "self_attn.q_proj.weight"
    assert torch.equal(own[f"model.layers.2.{name}"], old[f"model.layers.3.{name}"])


@pytest.mark.parametrize(("layers", "left"), [([0, 2, 3], [[1, 1]]), ([0, 1], None)])
def test_generation_settings_that_name_layers_go_with_them(layers, left, tmp_path):
    config = WhisperConfig(
        vocab_size=60, d_model=16, encoder_layers=2, decoder_layers=4, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=8, max_source_positions=16,
        max_target_positions=32, pad_token_id=3, bos_token_id=3, eos_token_id=3, decoder_start_token_id=4,
    )  # fmt: skip
    model = randomize_weights_(WhisperForConditionalGeneration(config))
    model.generation_config = GenerationConfig(alignment_heads=[[2, 1]], lang_to_id={"<|en|>": 41})
    model.save_pretrained(tmp_path / "model")
    said = []
    with listen(lambda what, *_: said.append(what)):
        cut_checkpoint(str(tmp_path / "model"), tmp_path / "small", {"decoder.layers": layers})
    again = WhisperForConditionalGeneration.from_pretrained(tmp_path / "small")
    assert getattr(again.generation_config, "alignment_heads", None) == left
    assert again.generation_config.lang_to_id == {"<|en|>": 41}
    assert any("Word timestamps are refused" in each for each in said) == (left is None)


def test_layers_without_which_a_model_cannot_generate_stay(tmp_path):
    config = tiny(AutoConfig.for_model("t5", num_layers=3, num_decoder_layers=3), depth=True)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match="cannot generate: IndexError"):
        cut_checkpoint(str(tmp_path / "model"), tmp_path / "small", {"encoder.layers": [0, 2]})
    assert not (tmp_path / "small").exists()
    cut_checkpoint(str(tmp_path / "model"), tmp_path / "small", {"layers": [0, 2]})
    assert AutoConfig.from_pretrained(tmp_path / "small").num_layers == 2


def test_only_one_shard_is_read_at_a_time(tmp_path):
    model = small()
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    stored = Stored(tmp_path / "model")
    assert set(stored) == {*model.state_dict()} - ({"lm_head.weight"} if model.config.tie_word_embeddings else set())
    assert torch.equal(stored["model.norm.weight"], model.state_dict()["model.norm.weight"])


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"layers": 1}, "Which layers matter shows only on data"),
        ({"fnn": 0.5}, "Did you mean 'ffn'"),
        ({"vocabulary": 0.5}, "needs a tokenizer with the kept tokens"),
        ({"layers": [0, 5]}, "expected rising indices"),
        ({"ffn": 1}, r"keep\.ffn: 1 can be read as one unit or as all.*Write 1\.0"),
    ],
)
def test_what_cannot_be_cut_on_disk_is_refused_and_nothing_is_left(keep, message, tmp_path):
    small().save_pretrained(tmp_path / "model")
    with pytest.raises((UsageError, ValueError), match=message):
        cut_checkpoint(str(tmp_path / "model"), tmp_path / "small", keep)
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("keep", [{"ffn": 16, "kv_groups": 2}, {"experts": 2}, {"expert_ffn": 8, "hidden": 24}])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_experts_that_lie_apart_in_files_do_so_afterwards(kind, keep, tmp_path):
    """In memory all experts of a layer are one tensor."""
    model = small(kind)
    keep = {n: size for n, size in keep.items() if discover(model.config, type(model)).named(n)}
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    before = Stored(tmp_path / "model").sources
    assert before.keys() != model.state_dict().keys()
    cut_checkpoint(str(tmp_path / "model"), tmp_path / "small", keep, shard_size="10KB")
    again, expected = AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval(), by_hand(model, keep)
    inputs = example_inputs(again)
    assert difference(outputs_of(expected, inputs), outputs_of(again, inputs)) == 0
    expected.save_pretrained(tmp_path / "wanted")
    assert Stored(tmp_path / "small").sources.keys() == Stored(tmp_path / "wanted").sources.keys()


def test_what_a_module_of_the_model_lacks_is_refused_and_another_head_is_left_out_and_said(tmp_path):
    model = small()
    model.save_pretrained(tmp_path / "model")
    held = load_file(tmp_path / "model" / "model.safetensors")
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}  # as older files have them
    head = {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1)}
    strange = {"model.layers.0.adapter.weight": torch.ones(4)}
    save_file(held | strange, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UsageError, match=r"model has weights for model\.layers\.0\.adapter\.weight, but LlamaForCausalLM"
    ):
        cut_checkpoint(str(tmp_path / "model"), tmp_path / "small", {"ffn": 0.5})
    save_file(held | frequencies | head, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    said = []
    with listen(lambda what, *_: said.append(what)):
        cut_checkpoint(str(tmp_path / "model"), tmp_path / "small", {"ffn": 16})
    assert any("model holds what LlamaForCausalLM does not read: v_head (2 tensors)." in each for each in said)
    assert Stored(tmp_path / "small").sources.keys() == held.keys()


def test_a_taken_folder_is_refused(tmp_path):
    small().save_pretrained(tmp_path / "model")
    BertModel(tiny(AutoConfig.for_model("bert"))).save_pretrained(tmp_path / "taken")
    with pytest.raises(UsageError, match="not empty"):
        cut_checkpoint(str(tmp_path / "taken"), tmp_path / "model", {"ffn": 0.5})


def test_what_is_stored_in_float32_stays_so_in_the_files(tmp_path):
    model = small(tie_word_embeddings=False).to(torch.bfloat16)
    model.lm_head.float().weight.data.normal_()
    model.save_pretrained(tmp_path / "model")
    cut_checkpoint(str(tmp_path / "model"), tmp_path / "small", {"ffn": 16})
    held = load_file(tmp_path / "small" / "model.safetensors")
    assert torch.equal(held["lm_head.weight"], model.lm_head.weight)
    assert {tensor.dtype for name, tensor in held.items() if name != "lm_head.weight"} == {torch.bfloat16}


@pytest.mark.parametrize("value", [-1.0, 0, 2.5, float("nan"), float("inf"), True, "half"])
def test_what_is_neither_a_share_nor_a_number_of_units_is_refused(value, tmp_path):
    with pytest.raises(UsageError, match=r"keep.ffn: expected a fraction above 0 and up to 1\.0"):
        cut_checkpoint(str(tmp_path), tmp_path / "out", {"ffn": value})
    with pytest.raises(ValueError, match="expected a fraction above 0"):
        StructuredPruning(keep={"ffn": value})
