import json

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from tokenizers import Tokenizer
from transformers import BertModel, LlamaConfig, LlamaForCausalLM

from hf_pe.data import DataConfig, load_examples
from hf_pe.errors import NotFiniteError, UsageError
from hf_pe.measure import chance_warnings, changes, evaluate_task, first_outputs, quality
from hf_pe.tasks import CausalLM, EvalResult
from tests.helpers import TEXTS, bert_config, taught

DRAW = np.random.default_rng(3)
RIGHT = DRAW.random(400) < 0.9
HARD = np.arange(400) < 100


def judged(right, slices=None):
    return EvalResult({"right": right}, lambda c: {"accuracy": float(c["right"].mean())}, slices or {})


def test_a_model_beside_itself_has_no_change_and_no_doubt():
    (change,) = changes(judged(RIGHT), judged(RIGHT))
    assert (change.before, change.low, change.high) == (change.after, 0, 0)


def test_the_interval_is_scipys_paired_one():
    worse = RIGHT & (DRAW.random(400) < 0.95)
    (change,) = changes(judged(RIGHT), judged(worse), resamples=4000)
    assert change.examples == 400
    assert change.low < change.after - change.before < change.high < 0
    theirs = bootstrap(
        (worse.astype(float), RIGHT.astype(float)), lambda a, b, axis: (a - b).mean(axis=axis),
        paired=True, method="percentile", n_resamples=4000, rng=DRAW,
    ).confidence_interval  # fmt: skip
    assert (change.low, change.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)


def test_pairing_makes_it_narrower_than_two_intervals_would_be():
    worse = RIGHT & (np.arange(400) != 7)
    (change,) = changes(judged(RIGHT), judged(worse))
    assert change.high - change.low < 0.02, "one example of 400 differs"


def test_a_slice_tells_where_it_got_worse():
    worse = RIGHT & ~(HARD & (DRAW.random(400) < 0.4))
    few = np.arange(400) < 19
    slices = {"hard": HARD, "easy": ~HARD, "few": few}
    (change,) = changes(judged(RIGHT, slices), judged(worse, slices))
    parts = {part.name: part for part in change.slices}
    assert set(parts) == {"hard", "easy"}, "19 examples tell nothing"
    assert parts["hard"].high < 0
    assert (parts["easy"].low, parts["easy"].high) == (0, 0)
    assert parts["hard"].examples == 100


def test_a_model_that_cannot_read_its_batches_is_named_before_work(tokenizer, llama_folder):
    model = LlamaForCausalLM.from_pretrained(llama_folder).eval()
    data = CausalLM().prepare(load_examples(TEXTS), tokenizer, model.config)
    first_outputs(model, data)
    model.model.embed_tokens = torch.nn.Embedding(200, 32)
    with pytest.raises(
        UsageError, match=r"LlamaForCausalLM cannot read the inputs that its tokenizer or processor makes"
    ):
        first_outputs(model, data)


def test_a_float16_model_that_overflows_is_named_before_it_is_scored(tokenizer, llama_folder):
    model = LlamaForCausalLM.from_pretrained(llama_folder).eval()
    data = CausalLM().prepare(load_examples(TEXTS), tokenizer, model.config)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1e4)
    evaluate_task(model, data)
    with pytest.raises(NotFiniteError, match=r"float16, which overflows in model\.layers\.1\..*bfloat16"):
        evaluate_task(model.to(torch.float16).train(), data)
    assert all(module.training for module in model.modules())


def test_a_function_of_the_users_that_fails_leaves_the_mode_of_each_module():
    model = BertModel(bert_config()).train()
    model.pooler.eval()
    with pytest.raises(ZeroDivisionError):
        quality(model, None, lambda given: {"share": 1 / int(given.training)})
    assert model.training and model.encoder.training and not model.pooler.training


def with_other_numbers(tokenizer):
    """The same words with other numbers: the tokenizer of another model."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    words = [word for word in vocabulary if not word.startswith("[")]
    state["model"]["vocab"] |= {word: vocabulary[other] for word, other in zip(words, words[::-1], strict=True)}
    changed = Tokenizer.from_str(json.dumps(state))
    return tokenizer.__class__(tokenizer_object=changed, **tokenizer.special_tokens_map)


def test_a_model_with_the_tokenizer_of_another_is_no_better_than_chance(tokenizer, tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=200, **sizes))
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    examples = load_examples(DataConfig(train=str(tmp_path / "a.txt"), max_length=16))
    right, wrong = (
        CausalLM().prepare(examples, each, model.config) for each in (tokenizer, with_other_numbers(tokenizer))
    )
    taught(model, right, steps=30)
    assert chance_warnings(model, quality(model, right), right) == ()
    (warning,) = chance_warnings(model, quality(model, wrong), wrong)
    assert "no better than guessing without the inputs" in warning


def test_a_metric_that_is_no_number_is_no_better_than_chance(llama_folder, tokenizer):
    model = LlamaForCausalLM.from_pretrained(llama_folder)
    data = CausalLM().prepare(load_examples(TEXTS), tokenizer, model.config)
    assert chance_warnings(model, {"perplexity": float("nan")}, data)
