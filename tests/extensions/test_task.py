"""A task takes one class and one line: recipe files, schema, help, inference, runs, cards and callbacks follow."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import datasets
import numpy as np
import pytest
import torch
import yaml
from transformers import (
    AutoConfig,
    AutoModelForNextSentencePrediction,
    BertForNextSentencePrediction,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

import hf_pe
from hf_pe import CompressionReport, Distillation, UsageError, compress
from hf_pe.checkpoints.source import Source
from hf_pe.data import DataConfig
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.modes import evaluating
from hf_pe.recipe_file import json_schema, read_recipe
from hf_pe.report import read_report
from hf_pe.tasks import TASKS, EvalResult, Task, TaskData, model_inputs
from hf_pe.tasks.infer import find_task
from hf_pe.tasks.texts import texts_of
from tests.helpers import TEXTS, bert_config, call, saved

PAIRS = [
    {"text": first, "text_pair": TEXTS[(number + 1 + 7 * (number % 2)) % len(TEXTS)], "label": number % 2}
    for number, first in enumerate(TEXTS)
]


@dataclass(frozen=True)
class NextSentence(Task):
    """Choose whether a text follows on another one."""

    name = "next_sentence"
    auto_class = "AutoModelForNextSentencePrediction"
    architectures = ("ForNextSentencePrediction",)
    pipeline_tag = "text-classification"
    metric = "right"
    hub_metrics: ClassVar[Mapping[str, str]] = {"right": "accuracy"}
    outputs = "logits of each pair"
    needs_label = True

    def prepare(self, examples, processor, config):
        options = examples.config

        def tokens(rows):
            texts = [texts_of(rows, name) for name in options.texts]
            inputs = processor(*texts, truncation=True, max_length=options.max_length)
            return datasets.Dataset.from_dict({**inputs, "labels": rows["label"]})

        train, evaluation = tokens(examples.train), tokens(examples.eval)
        return TaskData(self, processor, train, evaluation, DataCollatorWithPadding(processor), examples)

    def signals(self, model, batch, *, hidden=False):
        out = model(**model_inputs(batch), output_hidden_states=hidden)
        loss = torch.nn.functional.cross_entropy(out.logits, batch["labels"])
        return {"logits": out.logits, "loss": loss} | ({"hidden_states": out.hidden_states} if hidden else {})

    def describe(self, data):
        return "`right` is the fraction of pairs for which the choice is right."

    def evaluate(self, model, data):
        with evaluating(model), torch.no_grad():
            choices = [self.signals(model, batch)["logits"].argmax(-1) for batch in data.batches(data.eval)]
        right = torch.cat(choices).numpy() == np.asarray(data.eval["labels"])
        return EvalResult({"right": right}, lambda columns: {"right": float(columns["right"].mean())})


@pytest.fixture
def registered(register):
    register(TASKS, NextSentence.name, NextSentence)  # the one line


@pytest.fixture
def model():
    return randomize_weights_(BertForNextSentencePrediction(bert_config(num_hidden_layers=1))).eval()


@pytest.fixture
def folder(model, tokenizer, tmp_path):
    return saved(tmp_path / "model", model, tokenizer)


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, PAIRS)))
    return path


@pytest.fixture
def file(registered, folder, rows, tmp_path):
    path = tmp_path / "recipe.yaml"
    content = {
        "model": str(folder),
        "data": {"train": str(rows), "text_pair": "text_pair", "label": "label", "max_length": 32},
        "recipes": [{"recipe": "distil", "steps": 2, "batch_size": 4}],
    }
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_recipe_file_its_schema_and_the_help_know_its_name(file):
    assert read_recipe(file, ["task=next_sentence"]).task == "next_sentence"
    with pytest.raises(
        UsageError, match=r"task: expected one of .*next_sentence; got 'next_sentense'. Did you mean 'next_sentence'\?"
    ):
        read_recipe(file, ["task=next_sentense"])
    assert "next_sentence" in json_schema()
    assert "next_sentence" in call("measure", "--help").output


def test_the_help_keeps_no_names(monkeypatch):
    before = call("measure", "--help").output
    for name in ("first_task", "second_task"):
        with monkeypatch.context() as patch:
            patch.setitem(TASKS, name, NextSentence)
            assert name in call("measure", "--help").output
    assert call("measure", "--help").output == before


def test_it_is_inferred_from_the_class_that_a_checkpoint_names(registered):
    config = AutoConfig.for_model("bert", architectures=["BertForNextSentencePrediction"])
    assert find_task(None, Source(name="x", path="x"), config) == NextSentence()


def test_the_command_line_runs_it_and_the_card_names_it(file, rows, tmp_path):
    done = call("run", file, "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    report = read_report(tmp_path / "out")
    assert (report.task, report.pipeline_tag, report.metric) == ("next_sentence", "text-classification", "right")
    assert report.loading.auto_class == "AutoModelForNextSentencePrediction"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "metrics:\n- accuracy\n" in card and NextSentence().describe(None) in card
    options = ["--data", rows, "--text-pair", "text_pair", "--label", "label", "--json"]
    measured = call("measure", tmp_path / "out", "--task", "next_sentence", *options)
    assert json.loads(measured.stdout)["quality"].keys() == {"right"}


def test_a_model_in_memory_is_compressed_by_it(registered, model, tokenizer):
    data = (datasets.Dataset.from_list(PAIRS), DataConfig(train="pairs", text_pair="text_pair", label="label"))
    recipes = [Distillation(steps=2, batch_size=4)]
    result = compress(model, recipes, task="next_sentence", processor=tokenizer, data=data)
    assert isinstance(result.model, BertForNextSentencePrediction)
    assert result.report.after.quality.keys() == {"right"}


def test_a_report_of_a_trainer_names_it(registered, folder, tokenizer, tmp_path):
    teacher = AutoModelForNextSentencePrediction.from_pretrained(folder)
    rows = [{**tokenizer(each["text"], each["text_pair"]), "labels": each["label"]} for each in PAIRS[:8]]
    args = TrainingArguments(
        output_dir=str(tmp_path / "trained"), max_steps=1, eval_strategy="steps", eval_steps=1, report_to="none",
        use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    Trainer(
        model=AutoModelForNextSentencePrediction.from_pretrained(folder),
        args=args,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[CompressionReport(teacher, base_model="someone/large", license="mit")],
    ).train()
    report = read_report(tmp_path / "trained")
    assert (report.task, report.pipeline_tag) == ("next_sentence", "text-classification")


def test_no_module_asks_whether_a_task_has_an_attribute():
    root = Path(hf_pe.__file__).parent
    probe = re.compile(r"(hasattr|getattr)\([\w.]*\btask\b,|\btask\b[\w.]*\.auto_class\.endswith")
    assert not [path.relative_to(root) for path in root.rglob("*.py") if probe.search(path.read_text("utf-8"))]
