import copy

import datasets
import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification, BertModel, LlamaConfig, LlamaForCausalLM

from hf_pe.data import DataConfig, Examples, load_examples
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.measure import nearness as module
from hf_pe.measure.nearness import estimates, few_rows, nearness, predictions
from hf_pe.tasks import CausalLM, Embedding, TextClassification
from tests.helpers import TEXTS, bert_config
from tests.tasks.test_every_task import KINDS, object_detection, question_answering, ready

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def language_model(vocabulary):
    return randomize_weights_(LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **SIZES))).eval()


def with_noise(model, size=0.05):
    noisy = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return noisy


def blocks(tokenizer, model):
    config = DataConfig(train="x", max_length=16)
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    return CausalLM().prepare(Examples(rows, rows, config, ""), tokenizer, model.config)


def whole_kl(original, result, data):
    """KL by its formula in float64, from all logits of one row at a time, over the tokens with a label."""
    values, equal = [], []
    for batch in data.batches(data.eval, 1):
        with torch.no_grad():
            p, q = (model(batch["input_ids"]).logits[0, :-1].double().softmax(-1) for model in (original, result))
        counted = batch["labels"][0, 1:] != -100
        values += (p * (p / q).log()).sum(-1)[counted].tolist()
        equal += (p.argmax(-1) == q.argmax(-1))[counted].tolist()
    return np.mean(values), np.mean(equal), len(values)


@pytest.mark.parametrize("vocabulary", [200, 5000])
def test_it_is_the_formula_in_chunks_and_at_once(tokenizer, vocabulary):
    """A vocabulary of 5,000 is large enough that logits are computed a few tokens at a time."""
    original = language_model(vocabulary)
    result = with_noise(original)
    data = blocks(tokenizer, original)
    compared = nearness(original, result, data, data.eval)
    kl, agreement, count = whole_kl(original, result, data)
    assert compared.scores()["kl"] == pytest.approx(kl, abs=1e-5)
    assert compared.scores()["agreement"] == pytest.approx(agreement)
    assert 0 < agreement < 1 and predictions(compared) == count


def test_logits_over_a_large_vocabulary_are_never_all_in_memory(tokenizer, monkeypatch):
    original, widths = language_model(5000), []
    data = blocks(tokenizer, original)
    compare = module._compared
    monkeypatch.setattr(module, "_compared", lambda *pair: widths.append(len(pair[0])) or compare(*pair))
    monkeypatch.setattr("hf_pe.tasks.head.TOKENS", 8)
    nearness(original, with_noise(original), data, data.eval.select(range(3)))
    assert max(widths) == 8


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_model_beside_itself_is_the_same(kind, tokenizer):
    data, model = ready(kind, tokenizer)
    compared = nearness(model, copy.deepcopy(model), data, data.eval)
    assert compared.count == len(data.eval)
    assert compared.scores() == {"kl": 0, "agreement": 1}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_another_model_is_farther_away_and_the_batch_has_no_say(kind, tokenizer, monkeypatch):
    """Rows beside longer ones are padded, and padding is no prediction."""
    data, model = ready(kind, tokenizer)
    result = with_noise(model, 0.1)
    compared = nearness(model, result, data, data.eval)
    assert compared.scores()["kl"] > 1e-4
    monkeypatch.setattr(module, "BATCH", 1)
    alone = nearness(model, result, data, data.eval)
    assert alone.scores() == pytest.approx(compared.scores(), rel=1e-2)
    if kind not in (question_answering, object_detection):
        labels = [np.atleast_1d(row) for row in data.eval["labels"]]
        assert predictions(compared) == sum(int((row != -100).sum()) for row in labels)


def test_labels_of_minus_100_do_not_count(tokenizer):
    original = language_model(200)
    result = with_noise(original)
    data = blocks(tokenizer, original)
    compared = nearness(original, result, data, data.eval)
    hidden = data.eval.map(lambda row: {"labels": [*row["labels"][:8], *[-100] * (len(row["labels"]) - 8)]})
    fewer = nearness(original, result, data, hidden)
    assert predictions(fewer) < predictions(compared)
    assert (fewer.columns["kl"] <= compared.columns["kl"]).all()


def test_embeddings_have_a_cosine(tokenizer):
    original = randomize_weights_(BertModel(bert_config())).eval()
    data = Embedding().prepare(load_examples(TEXTS), tokenizer, original.config)
    assert nearness(original, original, data, data.eval).scores()["cosine"] == pytest.approx(1)
    result = with_noise(original)
    vectors = [Embedding().embed(model, data, data.eval) for model in (original, result)]
    cosine = nearness(original, result, data, data.eval).scores()["cosine"]
    assert cosine == pytest.approx((vectors[0] * vectors[1]).sum(1).mean(), abs=1e-5)
    assert cosine < 0.999


def test_embeddings_of_other_widths_cannot_be_compared(tokenizer):
    original = BertModel(bert_config()).eval()
    data = Embedding().prepare(load_examples(TEXTS), tokenizer, original.config)
    assert nearness(original, BertModel(bert_config(hidden_size=32)).eval(), data, data.eval) is None


def test_the_mode_of_each_model_stays(tokenizer):
    model, other = (BertForSequenceClassification(bert_config()).train(mode) for mode in (True, False))
    rows = datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 1] * (len(TEXTS) // 2)})
    examples = Examples(rows, rows, DataConfig(train="x", label="label"), "")
    data = TextClassification().prepare(examples, tokenizer, model.config)
    nearness(model, other, data, data.eval)
    assert model.training and not other.training


def test_few_rows_are_drawn_within_both_limits(monkeypatch):
    rows = datasets.Dataset.from_dict({"input_ids": [[1] * 10] * 50, "number": list(range(50))})
    assert len(few_rows(rows, 0)) == 50
    monkeypatch.setattr(module, "MOST_TOKENS", 105)
    few = few_rows(rows, 0)["number"]
    assert len(few) == 10 and list(few) == sorted(few) and list(few) != list(range(10))
    monkeypatch.setattr(module, "MOST_ROWS", 4)
    assert len(few_rows(rows.remove_columns("input_ids"), 0)) == 4
    monkeypatch.setattr(module, "MOST_TOKENS", 5)
    assert len(few_rows(rows, 0)) == 1


def test_intervals_hold_the_estimate(tokenizer):
    original = language_model(200)
    data = blocks(tokenizer, original)
    compared = nearness(original, with_noise(original), data, data.eval)
    for name, estimate in estimates(compared).items():
        assert estimate.low < estimate.value < estimate.high
        assert estimate.value == compared.scores()[name]
