"""Logits of a large vocabulary are never whole: before, while and after a student learns, with the same figures."""

from dataclasses import replace

import pytest
import torch
from transformers import BertForMaskedLM, LlamaForCausalLM

from hf_pe.calibration import task_outputs
from hf_pe.data import DataConfig, load_examples
from hf_pe.distill import Cache, Distillation
from hf_pe.distill.signals import SignalRequest
from hf_pe.distill.teachers.cache_files import open_cache
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.recipe import StageState
from hf_pe.tasks import CausalLM, Head, MaskedLM, few_tokens
from hf_pe.tasks.batch import ROW
from tests.helpers import TEXTS, bert_config

CHUNK = 8


@pytest.fixture
def language(llama_folder, tokenizer):
    teacher = LlamaForCausalLM.from_pretrained(llama_folder).eval()
    examples = load_examples(TEXTS)
    examples = replace(examples, config=DataConfig(train="x", max_length=48, calibration=24))
    data = replace(CausalLM().prepare(examples, tokenizer, teacher.config), teacher=teacher)
    return randomize_weights_(LlamaForCausalLM(teacher.config), seed=9).eval(), data


@pytest.fixture
def large(monkeypatch):
    """Every vocabulary counts as a large one, and few tokens have their logits at a time."""
    for name in ("distill.build", "distill.teachers.cache_files", "tasks.likelihood"):
        monkeypatch.setattr(f"hf_pe.{name}.LARGE", 1)
    monkeypatch.setattr("hf_pe.tasks.head.TOKENS", CHUNK)


def watched(*models):
    """Of how many tokens the heads of `models` make logits at once."""
    sizes = []
    for model in models:
        head = model.get_output_embeddings()
        head.register_forward_hook(lambda module, args, logits: sizes.append(logits[..., 0].numel()))
    return sizes


@pytest.mark.parametrize("losses", [{}, {"kl": 1.0, "hidden": 1.0}, {"kl": 1.0, "attention": 1.0}])
def test_what_a_student_learns_from_is_found_out_on_few_tokens(language, losses, large):
    student, data = language
    sizes = watched(student, data.teacher)
    recipe = Distillation(losses=losses, layers="similar")
    recipe.check(StageState(data.teacher, data))
    recipe.plan(StageState(student, data))
    rows = 16  # whose hidden states are compared, each with the logits of one token
    assert max(sizes) <= max(2 * 32 if "attention" in losses else 0, rows if "hidden" in losses else 8)


def test_evaluation_and_calibration_have_the_same_figures_in_parts(language, monkeypatch):
    student, data = language
    data.eval.set_format(None)
    whole, lost = student, task_outputs(student, data)
    expected = CausalLM().evaluate(whole, data)
    for name in ("distill.teachers.cache_files", "tasks.likelihood"):
        monkeypatch.setattr(f"hf_pe.{name}.LARGE", 1)
    monkeypatch.setattr("hf_pe.tasks.head.TOKENS", CHUNK)
    sizes = watched(student)
    result = CausalLM().evaluate(student, data)
    for name, column in expected.columns.items():
        assert result.columns[name] == pytest.approx(column, rel=1e-5), name
    assert task_outputs(student, data)[0] == lost[0] == "loss"
    torch.testing.assert_close(task_outputs(student, data)[1], lost[1])
    assert max(sizes) <= CHUNK


def test_where_the_head_is_not_known_as_many_rows_are_evaluated_at_once_as_their_logits_fit(
    tokenizer, large, monkeypatch
):
    monkeypatch.setattr("hf_pe.tasks.likelihood.LOGITS_BYTES", 4 * 128 * 200)  # one row of 200 words
    model = randomize_weights_(BertForMaskedLM(bert_config(num_hidden_layers=1))).eval()
    data = MaskedLM().prepare(load_examples(TEXTS), tokenizer, model.config)
    sizes = watched(model)
    MaskedLM().evaluate(model, data)
    assert len(sizes) == len(data.eval)


def test_a_cache_is_the_same_in_parts(language, tmp_path, monkeypatch):
    _, data = language
    rows = []
    for name, size in (("whole", 10**9), ("parts", 1)):
        monkeypatch.setattr("hf_pe.tasks.likelihood.LARGE", size)
        monkeypatch.setattr("hf_pe.tasks.head.TOKENS", CHUNK)
        sizes = watched(data.teacher)
        cache = open_cache(Cache(folder=str(tmp_path / name), top_k=8), data.teacher, data, 2.0, 1.0, "a")
        rows.append(cache.signals({ROW: torch.arange(4)}, SignalRequest(data.task))["logits"])
    torch.testing.assert_close(rows[0].log_probs, rows[1].log_probs, rtol=0, atol=0.02)
    assert torch.equal(rows[0].classes, rows[1].classes)
    assert max(sizes) <= 16  # rows of a forward pass, with one token each


def test_the_last_state_is_what_the_head_reads(language):
    student, data = language
    batch = next(data.batches(data.train, 3))
    head = Head.of(student, batch)
    with torch.no_grad():
        whole = student(input_ids=batch["input_ids"]).logits
        torch.testing.assert_close(head(head.last_state(student, batch)), whole)
        hidden = head.last_state(student, batch)[0]
        parts = torch.cat([logits for _, logits in head.parts(hidden)])
    torch.testing.assert_close(parts, whole[0])


def test_only_batches_with_a_label_for_each_token_are_shortened():
    ids = torch.ones(16, 40, dtype=torch.long)
    short = few_tokens({"input_ids": ids, "labels": ids, ROW: torch.arange(16)})
    assert {name: tuple(value.shape) for name, value in short.items()} == {
        "input_ids": (1, 8), "labels": (1, 8), ROW: (1,),
    }  # fmt: skip
    for other in ({"labels": ids[:, :2]}, {"pixel_values": torch.zeros(16, 3, 8, 8)}, {"labels": ids[:, 0]}):
        batch = {"input_ids": ids, **other}
        assert few_tokens(batch) is batch
