"""Sequence to sequence: sources, targets and what the decoder reads are those of the models themselves."""

import copy
from dataclasses import replace

import pytest
import torch
from tokenizers import processors
from transformers import (
    BartConfig,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    T5Config,
)

from hf_pe.errors import UsageError
from hf_pe.tasks import Seq2Seq
from tests.tasks.test_every_task import seq2seq

SIZES = {"vocab_size": 200, "d_model": 32, "pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 3}
PARTS = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in
         (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))}  # fmt: skip
GERMAN = 10
"""The token that stands for a language in these tests."""


def ending(tokenizer, single):
    changed = copy.deepcopy(tokenizer)
    special = [("[SEP]", 3), ("[CLS]", 2), ("a", GERMAN)]
    changed.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=f"{single} $B", special_tokens=special
    )
    return changed


@pytest.mark.parametrize(
    ("model_class", "config", "single"),
    [
        (MBartForConditionalGeneration, MBartConfig, "$A [SEP] a"),
        (M2M100ForConditionalGeneration, M2M100Config, "a $A [SEP]"),
    ],
)
def test_targets_and_what_the_decoder_reads_are_the_models_own(model_class, config, single, tokenizer):
    given, _, _ = seq2seq()
    model = model_class(config(**SIZES, **PARTS, max_position_embeddings=64)).eval()
    data = Seq2Seq().prepare(given, ending(tokenizer, single), model.config)
    assert data.train["labels"][0].count(3) == 1, "the end stands once, before or behind the language"
    batch = data.collate([data.train[0], data.train[5]])
    with torch.no_grad():
        loss = Seq2Seq().signals(model, batch)["loss"]
        own = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
    torch.testing.assert_close(loss, own)
    if config is MBartConfig:
        assert batch["decoder_input_ids"][:, 0].tolist() == [GERMAN, GERMAN]


def test_targets_end_within_the_length_where_the_tokenizer_does_not_end_them(tokenizer):
    given, model, _ = seq2seq()
    short = given.config.model_copy(update={"max_length": 2})
    data = Seq2Seq().prepare(replace(given, config=short), ending(tokenizer, "$A"), model.config)
    assert {len(labels) for labels in data.train["labels"]} == {2}
    assert {labels[-1] for labels in data.train["labels"]} == {3}


def test_a_tokenizer_of_many_languages_needs_that_of_the_targets(tokenizer):
    given, model, _ = seq2seq()
    languages = copy.deepcopy(tokenizer)
    languages.src_lang, languages.tgt_lang = "en_XX", None
    with pytest.raises(UsageError, match="src_lang 'en_XX' but no tgt_lang"):
        Seq2Seq().prepare(given, languages, model.config)
    languages.tgt_lang = "de_DE"
    Seq2Seq().prepare(given, languages, model.config)


def test_a_decoder_without_a_beginning_is_refused(tokenizer):
    given, _, _ = seq2seq()
    config = BartConfig(**SIZES | {"decoder_start_token_id": None}, **PARTS)
    config.decoder_start_token_id = None
    with pytest.raises(UsageError, match="does not say what the decoder begins with"):
        Seq2Seq().prepare(given, tokenizer, config)


def test_prefixes_of_the_config_that_no_text_has_are_said(tokenizer):
    given, _, _ = seq2seq()
    tasks = {"summarization": {"prefix": "summarize: "}, "other": {"prefix": "The small"}}
    config = T5Config(**SIZES, d_ff=32, d_kv=16, num_layers=1, num_heads=2, task_specific_params=tasks)
    assert not Seq2Seq().prepare(given, tokenizer, config).warnings
    del tasks["other"]
    config.task_specific_params = tasks
    (warning,) = Seq2Seq().prepare(given, tokenizer, config).warnings
    assert "(`summarize: `), and the texts begin with none of them" in warning
