"""Tokenizers: what they add to a text, and texts that they do not know."""

import pytest
from transformers import GPT2Tokenizer

from hf_pe.data import load_examples
from hf_pe.errors import UsageError
from hf_pe.tasks import CausalLM, Embedding, task_named
from hf_pe.tasks.tokens import AddedTokens, added_tokens, unknown_fraction
from tests.helpers import TEXTS
from tests.tasks.test_every_task import examples, masked_lm, question_answering, seq2seq, token_classification

CYRILLIC = [f"{text} Это предложение номер {number} никто не знает." for number, text in enumerate(TEXTS)]


def test_added_tokens_stand_around_the_text(tokenizer):
    assert added_tokens(tokenizer, TEXTS[0]) == AddedTokens((2,), (3,))


def test_unknown_tokens_are_counted_without_special_ones(tokenizer):
    rows = tokenizer(["the dog", "the слон"])["input_ids"]
    assert unknown_fraction(tokenizer, rows) == 1 / 4


def test_a_tokenizer_of_bytes_knows_everything(tokenizer):
    bytes_only = GPT2Tokenizer(vocab={"<|endoftext|>": 0, "a": 1}, merges=[])
    assert bytes_only.unk_token_id == bytes_only.eos_token_id == 0
    assert unknown_fraction(bytes_only, [[0, 0, 1]]) == 0


@pytest.mark.parametrize("task", [CausalLM(), Embedding()], ids=lambda task: task.name)
def test_texts_that_the_tokenizer_does_not_know_are_said(task, tokenizer):
    (warning,) = task.prepare(load_examples(CYRILLIC), tokenizer, None).warnings
    assert warning.startswith("The tokenizer does not know 4") and "`[UNK]`" in warning
    assert not task.prepare(load_examples(TEXTS), tokenizer, None).warnings


@pytest.mark.parametrize("kind", [masked_lm, question_answering, seq2seq, token_classification])
def test_every_task_with_texts_says_so(kind, tokenizer):
    given, model, _ = kind()
    known = task_named(kind.__name__).prepare(given, tokenizer, model.config)
    assert not known.warnings
    strange = tokenizer.__class__(tokenizer_object=_without_words(tokenizer), **tokenizer.special_tokens_map)
    assert "does not know" in task_named(kind.__name__).prepare(given, strange, model.config).warnings[0]


def test_targets_that_the_tokenizer_does_not_know_are_said(tokenizer):
    given, model, _ = seq2seq()
    from dataclasses import replace

    rows = given.train.map(lambda row: {"label": "Это предложение никто не знает."})
    data = task_named("seq2seq").prepare(replace(given, train=rows, eval=rows), tokenizer, model.config)
    assert "does not know" in data.warnings[0]


def test_words_are_tokenized_as_the_pipeline_sends_them(tokenizer):
    """A tokenizer of bytes marks the space before a word; word by word there would be none."""
    vocabulary = {token: number for number, token in enumerate(("<s>", "<|endoftext|>", *"ĠNewYork"))}
    pairs = [("N", "e"), ("Ne", "w"), ("Y", "o"), ("Yo", "r"), ("Yor", "k"), ("Ġ", "York")]
    for one, other in pairs:
        vocabulary.setdefault(one + other, len(vocabulary))
    marks = GPT2Tokenizer(vocab=vocabulary, merges=pairs, pad_token="<|endoftext|>")
    rows = [{"text": ["New", "York"], "label": ["B-CAT", "I-CAT"]}] * 12
    _, model, _ = token_classification()
    data = task_named("token_classification").prepare(examples(rows, label="label"), marks, model.config)
    assert data.train["input_ids"][0] == marks("New York")["input_ids"] == [vocabulary["New"], vocabulary["ĠYork"]]
    assert data.train["labels"][0] == [2, 3]


def test_a_tokenizer_without_places_in_the_text_is_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    for kind in (token_classification, question_answering):
        given, model, _ = kind()
        with pytest.raises(UsageError, match="returns no offsets of its tokens"):
            task_named(kind.__name__).prepare(given, tokenizer, model.config)


def _without_words(tokenizer):
    """The same tokenizer, to which only special tokens and the full stop are known."""
    import json

    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    state["model"]["vocab"] = {token: number for token, number in vocabulary.items() if not token.strip("#").isalpha()}
    return Tokenizer.from_str(json.dumps(state))
