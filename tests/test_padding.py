"""Decoders that classify a text by its last token, in batches, although their configs name no padding token."""

import copy
import functools

import datasets
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MobileBertConfig,
    PreTrainedTokenizerFast,
)

from hf_pe import StructuredPruning, compress
from hf_pe.anatomy import discover
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.source import resolve
from hf_pe.data import DataConfig
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import outputs_of
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.measure import measure
from hf_pe.padding import padding_id, padding_token
from hf_pe.verify.equivalence import verify_cut
from tests.helpers import TEXTS, bert_config, saved

LABELS = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}


def llama():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return randomize_weights_(
        LlamaForSequenceClassification(LlamaConfig(**sizes, **LABELS, vocab_size=200, eos_token_id=3))
    )


def gpt2():
    return randomize_weights_(
        GPT2ForSequenceClassification(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=200, **LABELS))
    )


@pytest.fixture
def bare(tokenizer):
    """Adds nothing to a text and names no padding token, as GPT-2's and Llama's do."""
    raw = copy.deepcopy(tokenizer.backend_tokenizer)
    raw.post_processor = None
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="[SEP]", unk_token="[UNK]")


@pytest.mark.parametrize("live", [True, False], ids=["loaded", "folder"])
def test_a_decoder_classifier_is_compressed_in_batches_and_its_result_names_the_padding(
    live, bare, tmp_path, monkeypatch
):
    monkeypatch.setattr("hf_pe.run.side_by_side.measure", functools.partial(measure, batches=()))
    monkeypatch.setattr("hf_pe.run.compress.with_folder_facts", lambda measured, *_: measured)
    model = llama()
    assert model.config.pad_token_id is None
    rows = datasets.Dataset.from_dict({"text": TEXTS, "label": ["negative", "positive"] * (len(TEXTS) // 2)})
    source = model if live else str(saved(tmp_path / "model", model, bare))
    made = compress(
        source, [StructuredPruning(keep={"ffn": 0.5})],
        data=(rows, DataConfig(train="rows", label="label")), processor=bare if live else None,
        task="text_classification",
    )  # fmt: skip
    assert any("names no padding token" in each and "`[SEP]` (id 3)" in each for each in made.report.warnings)
    assert made.model.config.pad_token_id == 3
    assert model.config.pad_token_id is None, "the user's own stays as it was"
    small = AutoModelForSequenceClassification.from_pretrained(saved(tmp_path / "small", made.model, bare)).eval()
    assert small.config.pad_token_id == 3
    one, two = bare(["The small dog", "The small dog runs through the garden"]).input_ids
    with torch.no_grad():
        alone = small(torch.tensor([one])).logits[0]
        beside = small(torch.tensor([one + [3] * (len(two) - len(one)), two])).logits[0]
    torch.testing.assert_close(alone, beside, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_without_data_too_more_than_one_row_goes_through(make, bare, tmp_path):
    model = make()
    axis = next(axis for axis in discover(model.config, type(model)).axes if axis.kind.name == "ffn")
    assert verify_cut(model.config, type(model), axis).holds
    loaded = load_model(resolve(str(saved(tmp_path, model, bare))), type(model))
    assert loaded.config.pad_token_id == 3
    assert outputs_of(loaded, example_inputs(loaded, batch=4))[0].shape == (4, 2)


def test_rows_are_padded_with_what_the_config_names_else_with_the_end(bare):
    bare.add_special_tokens({"additional_special_tokens": ["[PAD]"]})
    assert padding_token(bare, bert_config(pad_token_id=0)) == "[PAD]"
    assert padding_token(bare, bert_config(pad_token_id=5)) == "[SEP]", "id 5 is a word"
    assert padding_token(bare, bert_config(pad_token_id=None)) == "[SEP]"
    assert padding_id(bert_config(eos_token_id=[7, 8])) == 7
    assert padding_id(bert_config(eos_token_id=7), bare) == 3


def test_a_config_without_a_field_for_an_end_token_names_no_padding(bare):
    config = MobileBertConfig()
    assert not hasattr(config, "eos_token_id")
    assert padding_id(config) is None
    assert padding_id(config, bare) == 3


def test_an_encoder_keeps_its_padding(tmp_path, tokenizer):
    model = BertForSequenceClassification(bert_config())
    assert load_model(resolve(str(saved(tmp_path, model, tokenizer))), type(model)).config.pad_token_id == 0
