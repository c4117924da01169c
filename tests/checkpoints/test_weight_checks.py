"""A checkpoint that is not the model is refused before anything is written; what is left out knowingly is listed."""

import functools
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    GPTJConfig,
    GPTJModel,
    LlamaForCausalLM,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
)

from hf_pe import StructuredPruning, compress, cut_checkpoint, quantize_checkpoint
from hf_pe.checkpoints.load import load_model, load_with_unread
from hf_pe.checkpoints.source import resolve
from hf_pe.checkpoints.weight_checks import require_finite, require_present, unread_parts
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import UsageError
from hf_pe.hub import render_card
from hf_pe.measure import measure
from tests.helpers import TEXTS, bert_config

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def changed(tmp_path):
    """A copy of a model's folder after `change(tensors)`."""

    def made(folder, change, **fields):
        copy = shutil.copytree(folder, tmp_path / "changed")
        tensors = load_file(copy / "model.safetensors")
        change(tensors)
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((copy / "config.json").read_text("utf-8"))
        (copy / "config.json").write_text(json.dumps(config | fields), "utf-8")
        return copy

    return made


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("way", ["run", "cut", "quantize"])
def test_weights_that_are_not_finite_are_refused_by_name(way, value, changed, llama_folder, tmp_path):
    folder = str(changed(llama_folder, lambda tensors: tensors[DOWN][3, 5:7].fill_(value)))
    with pytest.raises(UsageError, match=rf"2 of the 12,288 values of {DOWN} are NaN or infinite"):
        if way == "run":
            compress(folder, [StructuredPruning(keep={"ffn": 0.5})], data=TEXTS, work=tmp_path / "work")
        elif way == "cut":
            cut_checkpoint(folder, tmp_path / "out", {"layers": [0, 1]})
        else:
            quantize_checkpoint(folder, tmp_path / "out")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "changed"]


def test_a_loaded_model_is_looked_at_too(tokenizer):
    model = randomize_weights_(BertModel(bert_config()))
    model.encoder.layer[2].output.dense.bias.data[0] = math.nan
    with pytest.raises(UsageError, match=r"1 of the 64 values of encoder\.layer\.2\.output\.dense\.bias"):
        compress(model, [StructuredPruning(keep={"ffn": 0.5})], data=TEXTS, task="embedding", processor=tokenizer)


def test_a_stored_attention_mask_is_finite_enough():
    require_finite([("mask", torch.full((3, 3), -torch.inf).triu(1))], "it")


@pytest.mark.parametrize("way", ["run", "cut", "quantize"])
def test_missing_weights_are_refused_by_name(way, changed, llama_folder, tmp_path):
    folder = str(changed(llama_folder, lambda tensors: tensors.pop(DOWN)))
    with pytest.raises(UsageError, match=f"has no weights for {DOWN}"):
        if way == "run":
            load_model(resolve(folder), LlamaForCausalLM)
        elif way == "cut":
            cut_checkpoint(folder, tmp_path / "out", {"layers": [0, 1]})
        else:
            quantize_checkpoint(folder, tmp_path / "out")


def test_only_the_pooler_that_nothing_reads_may_be_missing(bert_folder, classifier_folder, changed, tmp_path):
    def without_pooler(tensors):
        for name in [name for name in tensors if "pooler" in name]:
            del tensors[name]

    assert load_model(resolve(str(changed(bert_folder, without_pooler))), BertModel).pooler is not None
    shutil.rmtree(tmp_path / "changed")
    with pytest.raises(UsageError, match=r"has no weights for bert\.pooler\.dense\.bias"):
        load_model(resolve(str(changed(classifier_folder, without_pooler))), BertForSequenceClassification)


@pytest.mark.parametrize("way", ["run", "cut", "quantize"])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.bias", "model.layers.3.mlp.down_proj.weight"])
def test_weights_inside_the_model_that_its_config_denies_are_refused(way, name, changed, llama_folder, tmp_path):
    folder = str(changed(llama_folder, lambda tensors: tensors.update({name: torch.ones(64)})))
    with pytest.raises(UsageError, match=name):
        if way == "run":
            load_model(resolve(folder), LlamaForCausalLM)
        elif way == "cut":
            cut_checkpoint(folder, tmp_path / "out", {"layers": [0, 1]})
        else:
            quantize_checkpoint(folder, tmp_path / "out")


def test_the_head_of_another_task_and_what_transformers_ignores_are_listed(tmp_path, changed, bert_folder):
    randomize_weights_(BertForMaskedLM(bert_config())).save_pretrained(tmp_path / "masked")
    assert load_with_unread(resolve(str(tmp_path / "masked")), BertModel)[1] == ("cls (5 tensors)",)
    old = changed(bert_folder, lambda tensors: tensors.update({"embeddings.position_ids": torch.arange(64.0)[None]}))
    load_model(resolve(str(old)), BertModel)
    config = T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=24, num_layers=1, num_heads=4)
    randomize_weights_(T5ForConditionalGeneration(config)).save_pretrained(tmp_path / "t5")
    (unread,) = load_with_unread(resolve(str(tmp_path / "t5")), T5EncoderModel)[1]
    assert unread.startswith("decoder (")


def test_shapes_that_the_config_denies_are_refused_but_for_a_new_head(classifier_folder, changed):
    three = {str(i): f"class {i}" for i in range(3)}
    source = resolve(str(changed(classifier_folder, lambda tensors: None, id2label=three)))
    with pytest.raises(UsageError, match=r"classifier\.weight is \[2, 64\], expected \[3, 64\]"):
        load_model(source, BertForSequenceClassification)
    assert load_model(source, BertForSequenceClassification, new_head=True).num_labels == 3


def test_shapes_are_looked_at_on_disk_too(llama_folder, changed, tmp_path):
    folder = changed(llama_folder, lambda tensors: tensors.update({DOWN: torch.ones(64, 200)}))
    with pytest.raises(UsageError, match=rf"{DOWN} is \[64, 200\], expected \[64, 192\]"):
        cut_checkpoint(str(folder), tmp_path / "out", {"layers": [0, 1]})


def test_report_and_card_list_what_was_not_read(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("hf_pe.run.side_by_side.measure", functools.partial(measure, batches=()))
    monkeypatch.setattr("hf_pe.run.compress.with_folder_facts", lambda measured, *_: measured)
    randomize_weights_(BertForMaskedLM(bert_config(num_hidden_layers=2))).save_pretrained(tmp_path / "masked")
    tokenizer.save_pretrained(tmp_path / "masked")
    made = compress(
        str(tmp_path / "masked"), [StructuredPruning(keep={"ffn": 0.5})], data=TEXTS, task="embedding",
        evaluate=lambda model: {"size": 1.0},
    )  # fmt: skip
    assert made.report.unread_parts == ("cls (5 tensors)",)
    assert "since `BertModel` does not read them: `cls (5 tensors)`." in render_card(made.report)


def test_a_head_beside_the_one_that_is_read_and_constants_of_layers_are_listed(tmp_path):
    """bert-base-uncased has a head for pairs of sentences; GPT-J's files have the masks of their attention."""
    BertForPreTraining(bert_config()).save_pretrained(tmp_path)
    _, parts = load_with_unread(resolve(str(tmp_path)), BertForMaskedLM)
    assert "cls.seq_relationship (2 tensors)" in parts


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("h.0.attn.bias", False),
        ("h.0.attn.causal_mask", False),
        ("h.0.attn.out_proj.bias", True),
        ("h.0.attn.extra.weight", True),
        ("h.2.ln_1.weight", True),
        ("score.weight", False),
    ],
)
def test_what_a_layer_would_compute_with_is_refused(name, refused):
    model = GPTJModel(GPTJConfig(vocab_size=20, n_embd=16, n_layer=2, n_head=2, rotary_dim=4))
    if refused:
        with pytest.raises(UsageError, match=name):
            unread_parts([name], model, "a model")
    else:
        assert unread_parts([name], model, "a model")


def test_what_masks_recordings_in_training_alone_may_be_missing():
    model = Wav2Vec2ForCTC(
        Wav2Vec2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_feat_extract_layers=1,
            conv_dim=(8,), conv_kernel=(3,), conv_stride=(2,), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        )
    )  # fmt: skip
    require_present({"wav2vec2.masked_spec_embed"}, model, "a model")
    with pytest.raises(UsageError, match=r"no weights for lm_head\.bias"):
        require_present({"wav2vec2.masked_spec_embed", "lm_head.bias"}, model, "a model")
