"""A cache answers as its teacher did, takes little room, goes on where it stopped, and is for one purpose only."""

from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertForSequenceClassification,
    BertModel,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessor,
)

from hf_pe.data import DataConfig, Examples, load_examples
from hf_pe.distill import Distillation
from hf_pe.distill.signals import SignalRequest
from hf_pe.distill.teachers import cache_files as module
from hf_pe.distill.teachers.cache_files import open_cache
from hf_pe.distill.teachers.cached import Cache, with_rows
from hf_pe.distill.teachers.packed_logits import packed, unpacked
from hf_pe.dummies.tiny import randomize_weights_, tiny
from hf_pe.errors import UsageError
from hf_pe.prune import StructuredPruning
from hf_pe.recipe import StageState
from hf_pe.tasks import CausalLM, Embedding, ImageClassification, TextClassification
from tests.helpers import TEXTS, train_student


@pytest.fixture
def language(llama_folder, tokenizer):
    teacher = LlamaForCausalLM.from_pretrained(llama_folder).eval()
    examples = load_examples(TEXTS)
    examples = replace(examples, config=DataConfig(train="x", max_length=16))
    data = replace(CausalLM().prepare(examples, tokenizer, teacher.config), teacher=teacher)
    recipe = StructuredPruning(keep={"ffn": 0.5}, refit="none")
    return recipe.carry_out(StageState(teacher, data)).model, data


@pytest.mark.parametrize(("classes", "k"), [(200, 5), (49152, 64), (262144, 64), (70000, 1), (7, 3)])
def test_packing_keeps_classes_and_nearly_their_log_probabilities(classes, k):
    draw = np.random.default_rng(0)
    chosen = np.stack([draw.permutation(classes)[:k] for _ in range(9)])
    logs = -np.sort(draw.exponential(4, (9, k)).astype(np.float32))
    kept = packed(logs, chosen, classes)
    assert kept.nbytes <= 9 * (4 * k if k > 1 else 4)
    restored, which = unpacked(kept.reshape(-1), k, classes)
    assert np.array_equal(which, chosen)
    assert np.abs(restored - np.maximum(logs, -24)).max() < 0.004


def test_a_stored_logit_takes_less_than_four_bytes(language, tmp_path):
    _, data = language
    kept = open_cache(Cache(folder=str(tmp_path), top_k=64), data.teacher, data, 2.0, 1.0, "a")
    size = sum(f.stat().st_size for f in (tmp_path / "a").glob("*.arrow"))
    logits = len(data.train) * (len(data.train[0]["input_ids"]) - 1) * 64
    assert size / logits < 4.0
    assert kept.k == 64


@pytest.mark.parametrize("large", [10**9, 1])
def test_training_from_a_full_cache_is_training_from_the_teacher(language, tmp_path, monkeypatch, large):
    student, data = language
    monkeypatch.setattr("hf_pe.distill.build.LARGE", large)
    learn = Distillation(steps=6, losses={"kl": 1.0, "task": 0.2}, learning_rate=1e-3)
    _, live = train_student(learn, student, data)
    curves = {}
    for k in (64, 200):
        cached = learn.model_copy(update={"cache": Cache(folder=str(tmp_path / str(k)), top_k=k)})
        cached.plan(StageState(student, data))
        curves[k] = [loss for _, loss in train_student(cached, student, data)[1]]
    assert curves[200] == pytest.approx([loss for _, loss in live], rel=1e-4)
    assert curves[64] == pytest.approx([loss for _, loss in live], rel=0.2)


def test_later_runs_ask_no_teacher(language, tmp_path):
    student, data = language
    recipe = Distillation(steps=2, cache=Cache(folder=str(tmp_path), top_k=8))
    train_student(recipe, student, data)
    asked = []
    hook = data.teacher.register_forward_hook(lambda *_: asked.append(1))
    train_student(recipe.model_copy(update={"steps": 4, "learning_rate": 1e-4}), student, data)
    hook.remove()
    assert len(asked) <= 1  # to learn what it gives


def test_an_interrupted_cache_goes_on_where_it_stopped(language, tmp_path, monkeypatch):
    _, data = language
    monkeypatch.setattr(module, "ROWS", 4)
    cache = Cache(folder=str(tmp_path), top_k=8)
    whole = open_cache(cache, data.teacher, data, 2.0, 1.0, "whole")
    write, done = module._write, []

    def failing(file, *rest):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(file.name)
        write(file, *rest)

    monkeypatch.setattr(module, "_write", failing)
    with pytest.raises(KeyboardInterrupt):
        open_cache(cache, data.teacher, data, 2.0, 1.0, "part")
    monkeypatch.setattr(module, "_write", lambda file, *rest: (done.append(file.name), write(file, *rest)))
    again = open_cache(cache, data.teacher, data, 2.0, 1.0, "part")
    assert len(done) == len(set(done)) == -(-len(data.train) // 4)
    assert again.rows["answers"] == whole.rows["answers"]


def test_a_packed_teachers_cache_is_found_again(language, llama_folder, tmp_path):
    """Its weights lie otherwise in memory after a first pass, and are the same."""
    student, data = language
    teacher = {"model": str(llama_folder), "quantize": "nf4"}
    recipe = Distillation(steps=2, teachers=(teacher,), cache=Cache(folder=str(tmp_path), top_k=8))
    one, other = (train_student(recipe, student, data)[1] for _ in range(2))
    assert one == other
    assert len(list(tmp_path.iterdir())) == 1


def test_a_cache_for_something_else_is_refused(language, tmp_path):
    _, data = language
    cache = Cache(folder=str(tmp_path), top_k=8)
    open_cache(cache, data.teacher, data, 2.0, 1.0, "a")
    other = randomize_weights_(LlamaForCausalLM(data.teacher.config), seed=5).eval()
    fewer = replace(data, train=data.train.select(range(3)))
    for teacher, rows, temperature, what in (
        (other, data, 2.0, "teacher"),
        (data.teacher, fewer, 2.0, "data"),
        (data.teacher, data, 1.0, "temperature"),
    ):
        with pytest.raises(UsageError, match=rf"was made for another .*{what} \(.* then, .* now\)"):
            open_cache(cache, teacher, rows, temperature, 1.0, "a")
    with pytest.raises(UsageError, match="k "):
        open_cache(Cache(folder=str(tmp_path), top_k=9), data.teacher, data, 2.0, 1.0, "a")
    (tmp_path / "killed" / ".cache.json.hf_pe-0123abcd").mkdir(parents=True)  # killed before anything was in it
    open_cache(Cache(folder=str(tmp_path), top_k=8), data.teacher, data, 2.0, 1.0, "killed")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="contains other files"):
        open_cache(cache, data.teacher, data, 2.0, 1.0, "b")


def test_exchanged_images_and_other_preprocessing_are_something_else(tmp_path):
    """An image that lies in a file counts by what is in it; one that came as bytes is the same in each process."""
    for number in range(4):
        Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
    config = tiny(ResNetConfig(num_labels=2, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1}))
    teacher = ResNetForImageClassification(config).eval()
    rows = {"image": [str(tmp_path / f"{number}.png") for number in range(4)], "label": ["a", "b"] * 2}
    settings = DataConfig(train="x", image="image", label="label")
    examples = Examples(*[datasets.Dataset.from_dict(rows)] * 2, settings, "")
    small, other = (ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[mean] * 3) for mean in (0.5, 0.1))
    cache = Cache(folder=str(tmp_path / "cache"))

    def opened(processor):
        open_cache(cache, teacher, ImageClassification().prepare(examples, processor, config), 2.0, 1.0, "a")

    opened(small)
    with pytest.raises(UsageError, match="was made for another tokenizer"):
        opened(other)
    Image.new("RGB", (32, 32), (0, 255, 0)).save(tmp_path / "2.png")
    with pytest.raises(UsageError, match="was made for another data"):
        opened(small)


def test_few_classes_and_embeddings_are_kept_whole(bert_folder, classifier_folder, tokenizer, tmp_path):
    for name, model, task in (
        ("a", BertModel.from_pretrained(bert_folder), Embedding()),
        ("b", BertForSequenceClassification.from_pretrained(classifier_folder), TextClassification()),
    ):
        examples = load_examples(TEXTS)
        if name == "b":
            rows = examples.train.add_column("label", ["negative", "positive"] * (len(examples.train) // 2))
            held = examples.eval.add_column("label", ["negative"] * len(examples.eval))
            config = DataConfig(train="x", label="label")
            examples = replace(examples, train=rows, eval=held, config=config)
        data = task.prepare(examples, tokenizer, model.config)
        kept = open_cache(Cache(folder=str(tmp_path)), model.eval(), data, 2.0, 1.0, name)
        rows, collate = with_rows(data)
        batch = collate([rows[i] for i in (5, 0, 7)])
        signal = "embeddings" if name == "a" else "logits"
        with torch.no_grad():
            expected = task.signals(model, batch)[signal]
        cached = kept.signals(batch, SignalRequest(task))[signal]
        torch.testing.assert_close(cached, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"losses": {"hidden": 1.0}}, "holds logits and embeddings only: leave out hidden"),
        ({"temperature": {"start": 2, "end": 1}}, "holds logits at one temperature"),
    ],
)
def test_what_a_cache_cannot_give_is_refused_at_once(settings, message):
    with pytest.raises(UsageError, match=message):
        Distillation(cache={"folder": "x"}, **settings)
