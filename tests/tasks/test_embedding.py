import copy
import itertools

import numpy as np
import pytest
import torch
from transformers import BertModel

from hf_pe.checkpoints.sentence_modules import SentenceModules
from hf_pe.data import DataConfig, load_examples, load_for_evaluation
from hf_pe.errors import UsageError
from hf_pe.tasks import Embedding, task_named
from tests.helpers import TEXTS


@pytest.fixture
def model(bert_folder):
    return BertModel.from_pretrained(bert_folder).eval()


def test_padding_does_not_change_an_embedding(model, tokenizer):
    data = Embedding().prepare(load_examples(TEXTS), tokenizer, model.config)
    together = Embedding().embed(model, data, data.train)
    rows = [data.train[i] for i in range(len(data.train))]
    with torch.no_grad():
        alone = [
            Embedding().signals(model, {k: torch.tensor([v]) for k, v in row.items()})["embeddings"][0].numpy()
            for row in rows
        ]
    assert np.allclose(together, np.stack(alone), atol=1e-5)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_pooling_kinds_differ(model, tokenizer):
    data = Embedding().prepare(load_examples(TEXTS), tokenizer, model.config)
    mean, cls = (Embedding(SentenceModules(p)).embed(model, data, data.eval) for p in ("mean", "cls"))
    assert not np.allclose(mean, cls)


def test_the_first_token_is_that_of_the_text_where_padding_comes_first(model, tokenizer):
    left = copy.deepcopy(tokenizer)
    left.padding_side = "left"
    task = Embedding(SentenceModules("cls"))
    alone = [task.encode(model, tokenizer, [text])[0] for text in (TEXTS[0], TEXTS[2])]
    batch = left.pad(left([TEXTS[0], TEXTS[2]]), return_tensors="pt")
    together = task.signals(model, dict(batch) | {"position_ids": _positions(batch["attention_mask"])})["embeddings"]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-4)


def _positions(mask):
    return (mask.cumsum(1) - 1).clamp_min(0)


def test_the_teacher_agrees_with_itself_and_not_with_noise(model, tokenizer):
    from dataclasses import replace

    from hf_pe.dummies.tiny import randomize_weights_
    from tests.helpers import bert_config

    data = Embedding().prepare(load_examples(TEXTS), tokenizer, model.config)
    data = replace(data, teacher=model)
    assert Embedding().evaluate(model, data).scores()["spearman"] == pytest.approx(1)
    other = randomize_weights_(BertModel(bert_config()), seed=5)
    assert Embedding().evaluate(other, data).scores()["spearman"] < 0.95


def test_scored_pairs(model, tokenizer, tmp_path):
    lines = [
        "one,two,score",
        *(f"{a},{b},{i % 5}" for i, (a, b) in enumerate(itertools.pairwise(TEXTS))),
    ]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    path = str(tmp_path / "pairs.csv")
    config = DataConfig(train=path, text="one", text_pair="two", label="score")
    data = Embedding().prepare(load_for_evaluation(config), tokenizer, model.config)
    embeddings = Embedding().embed(model, data, data.eval)
    half = len(embeddings) // 2
    from scipy.stats import spearmanr

    expected = spearmanr((embeddings[:half] * embeddings[half:]).sum(1), data.examples.eval["score"]).statistic
    assert Embedding().evaluate(model, data).scores()["spearman"] == pytest.approx(expected)


def test_a_score_without_a_pair_is_refused(tokenizer, model, tmp_path):
    (tmp_path / "a.csv").write_text("text,score\nThe dog runs.,1\nThe cat sleeps.,2\n")
    examples = load_examples(DataConfig(train=str(tmp_path / "a.csv"), label="score"))
    with pytest.raises(UsageError, match="text_pair"):
        Embedding().prepare(examples, tokenizer, model.config)


def test_unknown_tasks_name_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'embedding'"):
        task_named("embeding")


def test_chance_is_a_correlation_that_unrelated_scores_reach(model, tokenizer, tmp_path):
    draw = np.random.default_rng(0)
    lines = ["one,two,score", *(f"{a},{b},{draw.random()}" for a, b in itertools.pairwise(TEXTS))]
    for name in ("train.csv", "held.csv"):
        (tmp_path / name).write_text("\n".join(lines))
    files = {"train": str(tmp_path / "train.csv"), "eval": str(tmp_path / "held.csv")}
    config = DataConfig(**files, text="one", text_pair="two", label="score")
    data = Embedding().prepare(load_examples(config), tokenizer, model.config)
    pairs = len(data.examples.eval)
    reached = [np.corrcoef(draw.random(pairs), draw.random(pairs))[0, 1] for _ in range(4000)]
    assert Embedding().chance(model, data) == pytest.approx(np.quantile(reached, 0.95), rel=0.1)
    assert Embedding().chance(model, Embedding().prepare(load_examples(TEXTS), tokenizer, model.config)) is None
