"""A step of several batches has the gradient of one large batch, whatever the lengths of its rows."""

import math
from dataclasses import replace

import datasets
import pytest
import torch
from transformers import (
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DataCollatorForTokenClassification,
    LlamaForCausalLM,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from hf_pe.anatomy import EVERYWHERE, discover
from hf_pe.data import DataConfig, Examples
from hf_pe.distill import Distillation, DistillationTrainer
from hf_pe.distill.counts import UNITS, count
from hf_pe.distill.losses.registry import LOSSES
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import UsageError
from hf_pe.recipe import StageState
from hf_pe.stitching import StitchPoint, reuse_
from hf_pe.surgery import cut
from hf_pe.tasks import CausalLM, TaskData, task_named
from tests.helpers import bert_config, train_student

LENGTHS = [3, 19, 7, 12, 4, 17, 9, 22]
NAMES = {"id2label": {0: "x", 1: "y", 2: "z"}, "label2id": {"x": 0, "y": 1, "z": 2}}


def ids(length, seed):
    return torch.randint(6, 70, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def blocks(tokenizer, missing=()):
    """Rows of 24 tokens, of which some have a label; those in `missing` have none."""
    inputs = [ids(24, row) for row in range(8)]
    labels = [[-100] * (24 - n) + row[24 - n :] for n, row in zip(LENGTHS, inputs, strict=True)]
    labels = [[-100] * 24 if row in missing else each for row, each in enumerate(labels)]
    return {"input_ids": inputs, "labels": labels}, default_data_collator


def words(tokenizer):
    """Rows of different length, each token with a label but the first."""
    rows = {"input_ids": [ids(n, n) for n in LENGTHS], "attention_mask": [[1] * n for n in LENGTHS]}
    labels = [[-100, *(i % 3 for i in range(n - 1))] for n in LENGTHS]
    return rows | {"labels": labels}, DataCollatorForTokenClassification(tokenizer)


def sentences(tokenizer):
    rows, _ = words(tokenizer)
    del rows["labels"]
    return rows, lambda some: dict(tokenizer.pad(some, return_tensors="pt"))


def texts(tokenizer):
    """One label each; one has none that counts."""
    rows, collate = sentences(tokenizer)
    return rows | {"labels": [0, 1, 2, -100, 1, 0, 2, 1]}, collate


KINDS = {
    "causal_lm": (LlamaForCausalLM, None, blocks),
    "token_classification": (BertForTokenClassification, bert_config(num_hidden_layers=2, **NAMES), words),
    "text_classification": (BertForSequenceClassification, bert_config(num_hidden_layers=2, **NAMES), texts),
    "embedding": (BertModel, bert_config(num_hidden_layers=2), sentences),
}
CASES = [
    ("causal_lm", {"kl": 1.0, "task": 0.5}, 1),
    ("causal_lm", {"jsd": 1.0, "hidden": 1.0, "attention": 1.0}, 1),
    ("causal_lm", {"reverse_kl": 1.0, "task": 0.5, "relations": 1.0}, 10**9),
    ("token_classification", {"kl": 1.0, "task": 0.5, "hidden": 1.0}, 10**9),
    ("token_classification", {"features": 1.0}, 10**9),
    ("text_classification", {"kl": 1.0, "task": 0.5}, 10**9),
    ("embedding", {"cosine": 1.0, "mse": 1.0}, 10**9),
    ("embedding", {"hidden": 1.0, "attention": 1.0, "relations": 1.0}, 10**9),
]


class Gradients(TrainerCallback):
    """Remembers those of the first step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        if state.global_step == 0:
            self.of = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def first_step(kind, losses, rows, collate, batch, accumulate, folder, llama_folder):
    model_class, config, _ = KINDS[kind]
    config = config or LlamaForCausalLM.from_pretrained(llama_folder).config
    student, teacher = (randomize_weights_(model_class(config), seed=seed).eval() for seed in (9, 0))
    data = datasets.Dataset.from_dict(rows)
    task = task_named(kind)
    if "features" in losses:
        examples = Examples(data, data, DataConfig(train="x"), "")
        reuse_(
            teacher,
            student,
            StitchPoint("classifier", "classifier"),
            TaskData(task, None, data, data, collate, examples),
        )
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    gradients = Gradients()
    trainer = DistillationTrainer(
        model=student,
        args=TrainingArguments(
            str(folder), max_steps=1, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate,
            max_grad_norm=0.0, logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True,
        ),
        train_dataset=data,
        data_collator=collate,
        callbacks=[gradients],
        teacher=teacher.requires_grad_(False),
        task=task,
        losses=losses,
    )  # fmt: skip
    trainer.train()
    return gradients.of, trainer.state.log_history[0]


@pytest.mark.parametrize(("kind", "losses", "large"), CASES)
def test_batches_of_a_step_add_up_to_one_large_batch(
    kind, losses, large, tokenizer, llama_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("hf_pe.distill.build.LARGE", large)
    rows, collate = KINDS[kind][2](tokenizer)
    setup = (kind, losses, rows, collate)
    (whole, one), (parts, other) = (first_step(*setup, *size, tmp_path, llama_folder) for size in ((8, 1), (2, 4)))
    scale = max(float(g.abs().max()) for g in whole.values())
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        assert float((gradient - parts[name]).abs().max()) < 1e-5 * scale, name
    for name in ("loss", *(f"loss_{loss}" for loss in losses)):
        assert other[name] == pytest.approx(one[name], rel=1e-4), name
    if "teacher_agreement" in one and kind != "embedding":
        assert other["teacher_agreement"] == pytest.approx(one["teacher_agreement"], rel=1e-4)


def test_every_loss_is_a_mean_over_rows_predictions_labels_or_tokens_or_says_that_it_is_not():
    assert {name for name, loss in LOSSES.items() if loss.mean_over == "batches"} == {"similarity", "dist"}
    assert {loss.mean_over for loss in LOSSES.values()} == set(UNITS)
    compared = {name for _, losses, _ in CASES for name in losses}
    assert compared == LOSSES.keys() - {"similarity", "dist"}


@pytest.mark.parametrize("large", [1, 10**9])
@pytest.mark.parametrize("losses", [{"kl": 1.0, "task": 1.0}, {"dist": 1.0}, {"hidden": 1.0}])
def test_a_batch_without_a_label_trains_on(tokenizer, llama_folder, tmp_path, large, losses, monkeypatch):
    monkeypatch.setattr("hf_pe.distill.build.LARGE", large)
    rows, collate = blocks(tokenizer, missing=range(8))
    gradients, entry = first_step("causal_lm", losses, rows, collate, 4, 1, tmp_path, llama_folder)
    if "hidden" in losses:
        return  # hidden states count without labels
    assert entry["loss"] == 0
    assert all(float(gradient.abs().max()) == 0 for gradient in gradients.values())


def test_a_classifier_s_batch_without_a_label_trains_on(tokenizer, llama_folder, tmp_path):
    rows, collate = texts(tokenizer)
    rows["labels"] = [-100] * 8
    gradients, entry = first_step("text_classification", {"task": 1.0}, rows, collate, 4, 2, tmp_path, llama_folder)
    assert entry["loss"] == 0
    assert all(float(gradient.abs().max()) == 0 for gradient in gradients.values())


def test_counts_by_hand():
    causal = {"input_ids": torch.ones(2, 5, dtype=torch.long), "labels": torch.tensor([[7, -100, 1, 2, 3], [-100] * 5])}
    assert count(CausalLM(), causal).tolist() == [2, 3, 3, 10, 1]
    padded = {
        "input_ids": torch.ones(2, 4, dtype=torch.long),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]),
    }
    assert count(task_named("embedding"), padded).tolist() == [2, 2, 2, 5, 1]
    assert count(task_named("text_classification"), padded | {"labels": torch.tensor([1, -100])}).tolist() == [
        2,
        2,
        1,
        5,
        1,
    ]
    images = {"pixel_values": torch.zeros(3, 3, 8, 8), "labels": torch.tensor([0, 1, 2])}
    assert count(task_named("image_classification"), images).tolist() == [3, 3, 3, 3, 1]
    target = torch.tensor([[4, 5, -100], [4, -100, -100]])
    both = padded | {"decoder_input_ids": target.clamp_min(0), "labels": target}
    assert count(task_named("seq2seq"), both).tolist() == [2, 3, 3, 3, 1]


@pytest.fixture
def language(llama_folder, tokenizer):
    teacher = LlamaForCausalLM.from_pretrained(llama_folder).eval()
    rows = datasets.Dataset.from_dict(blocks(tokenizer)[0])
    examples = Examples(rows, rows, DataConfig(train="x"), "")
    return teacher, TaskData(CausalLM(), tokenizer, rows, rows, default_data_collator, examples, teacher=teacher)


def test_a_student_whose_vocabulary_was_cut_is_refused(language):
    teacher, data = language
    (axis,) = discover(teacher.config, LlamaForCausalLM).named("vocabulary")
    student = cut(teacher, axis, {EVERYWHERE: [0, 1, 2, 3, *range(4, 116, 2)]})
    with pytest.raises(
        UsageError, match=r"student's vocabulary has 60 rows, the teacher's 200, and the tokenizer uses"
    ):
        Distillation(steps=1, losses={"kl": 1.0}).plan(StageState(student, data))


@pytest.mark.parametrize("cached", [False, True])
def test_rows_that_pad_a_vocabulary_are_left_out(language, cached, tmp_path):
    teacher, data = language
    known = max(data.processor.get_vocab().values()) + 1
    student = LlamaForCausalLM.from_pretrained(teacher.name_or_path).eval()
    student.resize_token_embeddings(known + 3, mean_resizing=False)
    cache = {"folder": str(tmp_path), "top_k": 150} if cached else None
    recipe = Distillation(steps=1, losses={"kl": 1.0}, cache=cache)
    recipe.plan(StageState(student, data))
    _, curve = train_student(recipe, student, data)
    if cached:  # the classes that only the teacher has, and those that were not kept, count as one
        assert math.isfinite(curve[0][1])
    else:
        assert curve[0][1] == pytest.approx(0, abs=1e-6)
    with pytest.raises(UsageError, match="without a tokenizer it is not known whether"):
        Distillation(steps=1, losses={"kl": 1.0}).plan(StageState(student, replace(data, processor=None)))


def test_losses_within_a_batch_are_said_in_the_plan_when_batches_are_added_up(tokenizer):
    rows = datasets.Dataset.from_dict(sentences(tokenizer)[0])
    teacher = randomize_weights_(BertModel(bert_config())).eval()
    data = TaskData(
        task_named("embedding"), tokenizer, rows, rows, sentences(tokenizer)[1],
        Examples(rows, rows, DataConfig(train="x"), ""), teacher=teacher,
    )  # fmt: skip
    said = "similarity within each batch of 4, not over the 8 rows of a step"
    assert said in Distillation(batch_size=4, gradient_accumulation_steps=2).plan(StageState(teacher, data)).notes
    assert said not in Distillation(batch_size=4).plan(StageState(teacher, data)).notes
    assert (
        said
        not in Distillation(batch_size=4, gradient_accumulation_steps=2, losses={"cosine": 1.0})
        .plan(StageState(teacher, data))
        .notes
    )
