"""The mixin over any Trainer: same loss as by hand, logs, accumulation, resuming, stopping, many processes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import peft
import pytest
import torch
from transformers import (
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_pe.data import DataConfig, Examples, load_examples
from hf_pe.distill import Distillation, DistillationMixin, DistillationTrainer
from hf_pe.distill.build import ObjectiveSettings, build
from hf_pe.distill.teachers.live import LiveTeacher
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import NotFiniteError, UsageError
from hf_pe.tasks import CausalLM, Embedding, Seq2Seq, TextClassification
from tests.distill import many_processes
from tests.helpers import TEXTS, bert_config, train_student


@pytest.fixture
def language(llama_folder, tokenizer):
    teacher = LlamaForCausalLM.from_pretrained(llama_folder).eval().requires_grad_(False)
    examples = replace(load_examples(TEXTS), config=DataConfig(train="x", max_length=16))
    data = replace(CausalLM().prepare(examples, tokenizer, teacher.config), teacher=teacher)
    return randomize_weights_(LlamaForCausalLM(teacher.config), seed=9), data


def arguments(folder, **changes):
    settings = {"max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-3, "seed": 0}
    settings |= {"save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True, **changes}
    return TrainingArguments(output_dir=str(folder), **settings)


def made(kind, student, data, folder, *, losses=None, **changes):
    return kind(
        model=student,
        args=arguments(folder, **changes),
        train_dataset=data.train,
        data_collator=data.collate,
        teacher=data.teacher,
        task="causal_lm",
        losses=losses or {"kl": 1.0, "task": 0.5},
        temperature=2.0,
    )


def logged(trainer, name="loss"):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


class Own(Trainer):
    """A user's Trainer with a habit of its own."""

    def training_step(self, *args, **kwargs):
        self.steps_seen = getattr(self, "steps_seen", 0) + 1
        return super().training_step(*args, **kwargs)


class DistilledOwn(DistillationMixin, Own):
    """Theirs, taught."""


class DistilledSeq2Seq(DistillationMixin, Seq2SeqTrainer):
    """Stock, taught."""


def test_any_trainer_learns_the_same(language, tmp_path):
    student, data = language
    curves = []
    for kind in (DistillationTrainer, DistilledOwn):
        trainer = made(kind, randomize_weights_(LlamaForCausalLM(student.config), seed=9), data, tmp_path)
        trainer.train()
        curves.append(logged(trainer))
    assert curves[0] == curves[1]
    assert trainer.steps_seen == 4


def test_a_seq2seq_trainer_is_taught_and_still_generates(tokenizer, tmp_path):
    sizes = {"vocab_size": 200, "d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4}
    config = T5Config(**sizes, pad_token_id=0, eos_token_id=3, decoder_start_token_id=0)
    rows = datasets.Dataset.from_dict({"text": TEXTS, "label": [t.split()[2] for t in TEXTS]})
    examples = Examples(rows, rows.select(range(8)), DataConfig(train="x", label="label", max_length=16), "")
    data = Seq2Seq().prepare(examples, tokenizer, config)
    trainer = DistilledSeq2Seq(
        model=randomize_weights_(T5ForConditionalGeneration(config), seed=9),
        args=Seq2SeqTrainingArguments(
            str(tmp_path), max_steps=30, per_device_train_batch_size=8, logging_steps=1, learning_rate=3e-3,
            save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, predict_with_generate=True,
        ),
        train_dataset=data.train,
        eval_dataset=data.eval,
        data_collator=data.collate,
        teacher=randomize_weights_(T5ForConditionalGeneration(config), seed=1).requires_grad_(False),
        task="seq2seq",
        losses={"kl": 1.0, "hidden": 0.1},
    )  # fmt: skip
    trainer.train()
    values = logged(trainer)
    assert sum(values[-5:]) < 0.9 * sum(values[:5])
    assert trainer.predict(data.eval, max_length=6).predictions.shape[0] == 8


def test_each_entry_of_the_log_has_the_terms_the_agreement_and_the_speed(language, tmp_path):
    student, data = language
    trainer = made(DistillationTrainer, student, data, tmp_path, logging_steps=2)
    trainer.train()
    entries = [e for e in trainer.state.log_history if "loss" in e]
    assert len(entries) == 2
    for entry in entries:
        assert entry["loss"] == pytest.approx(entry["loss_kl"] + 0.5 * entry["loss_task"], rel=1e-4)
        assert 0 <= entry["teacher_agreement"] <= 1
        assert entry["tokens_per_second"] > 0
        assert 0 < entry["teacher_share"] < 1


def test_small_batches_added_up_are_one_large_batch(language, tmp_path):
    student, data = language
    runs = []
    for batch, accumulate in ((4, 1), (1, 4)):
        model = randomize_weights_(LlamaForCausalLM(student.config), seed=9)
        trainer = made(
            DistillationTrainer, model, data, tmp_path,
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate,
        )  # fmt: skip
        trainer.train()
        runs.append((logged(trainer), [p.detach().clone() for p in model.parameters()]))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-4)
    for one, other in zip(runs[0][1], runs[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_evaluation_gives_the_same_loss_and_the_logits(language, tmp_path):
    student, data = language
    trainer = made(DistillationTrainer, student, data, tmp_path)
    output = trainer.predict(data.eval)
    assert output.predictions.shape[-1] == student.config.vocab_size
    assert output.metrics["test_loss"] > 0


def test_an_evaluation_of_the_loss_alone_makes_no_whole_logits(language, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_pe.distill.build.LARGE", 1)
    student, data = language
    trainer = made(DistillationTrainer, student, data, tmp_path)
    expected = trainer.predict(data.eval).metrics["test_loss"]
    shapes = []
    for model in (student, data.teacher):
        model.lm_head.register_forward_hook(lambda module, args, logits: shapes.append(tuple(logits.shape[:-1])))
    assert trainer.evaluate(data.eval)["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert all(len(shape) == 1 or shape[1] == 1 for shape in shapes)


@pytest.mark.parametrize(
    "losses", [{"attention": 1.0}, {"relations": 1.0}, {"kl": 1.0, "attention": 0.5, "hidden": 0.1}]
)
@pytest.mark.parametrize("large", [1, 10**9])
def test_attention_is_learned(language, tmp_path, losses, large, monkeypatch):
    monkeypatch.setattr("hf_pe.distill.build.LARGE", large)
    student, data = language
    before = student.config._attn_implementation
    trainer = made(DistillationTrainer, student, data, tmp_path, losses=losses, max_steps=30)
    trainer.train()
    values = logged(trainer)
    assert sum(values[-5:]) < 0.9 * sum(values[:5])
    assert {f"loss_{name}" for name in losses} <= trainer.state.log_history[0].keys()
    assert student.config._attn_implementation == before


def test_a_teacher_left_trainable_is_refused(language, tmp_path):
    student, data = language
    data.teacher.lm_head.requires_grad_(True)
    with pytest.raises(UsageError, match=r"is trainable \(.* requires a gradient\): call teacher\.requires_grad_"):
        made(DistillationTrainer, student, data, tmp_path)


def test_a_teacher_that_is_the_student_is_refused(language, tmp_path):
    student, data = language
    student.model.layers[0] = data.teacher.model.layers[0]
    with pytest.raises(UsageError, match="share parameters"):
        made(DistillationTrainer, student, data, tmp_path)


@pytest.mark.parametrize("kind", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
def test_learned_prompts_are_refused_before_training(language, tmp_path, kind):
    student, data = language
    wrapped = peft.get_peft_model(student, kind(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(UsageError, match=r"student reads learned prompts \(P.*_TUNING of PEFT\).*such as LoRA"):
        made(DistillationTrainer, wrapped, data, tmp_path)
    with pytest.raises(UsageError, match="teacher reads learned prompts"):
        made(DistillationTrainer, LlamaForCausalLM(student.config), replace(data, teacher=wrapped), tmp_path)


class Poison(TrainerCallback):
    """From some step on the student gives no numbers."""

    def on_step_begin(self, args, state, control, model=None, **_):
        if state.global_step == 3:
            model.model.norm.weight.data[0] = float("nan")


def test_a_loss_that_is_not_finite_stops_the_run_and_names_term_and_rows(language, tmp_path):
    student, data = language
    trainer = made(DistillationTrainer, student, data, tmp_path, save_strategy="steps", save_steps=2, max_steps=8)
    trainer.add_callback(Poison())
    with pytest.raises(NotFiniteError, match=r"Step 4: .*kl \(nan\).* in training rows \[\d+.*checkpoints in"):
        trainer.train()
    kept = LlamaForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    assert all(torch.isfinite(p).all() for p in kept.parameters())
    assert not (tmp_path / "checkpoint-4").exists()


def test_a_teacher_that_answers_with_nan_is_named_as_the_cause_and_no_folder_that_is_gone(language):
    student, data = language
    with torch.no_grad():
        data.teacher.model.norm.weight[0] = torch.nan
    recipe = Distillation(steps=2, batch_size=4, losses={"kl": 1.0}, checkpoint_every=1)
    with pytest.raises(NotFiniteError, match=r"The cause is the teacher: its .*logits.* are not finite") as stopped:
        train_student(recipe, student, data)
    assert "/tmp" not in str(stopped.value) and "checkpoints in" not in str(stopped.value)
    assert "use another teacher" in str(stopped.value)


def test_a_float16_teacher_that_overflows_is_told_so(language):
    student, data = language
    with torch.no_grad():
        data.teacher.model.layers[0].mlp.down_proj.weight.mul_(1e4)
    data.teacher.to(torch.float16)
    recipe = Distillation(steps=2, batch_size=4, losses={"kl": 1.0})
    with pytest.raises(NotFiniteError, match=r"the teacher: .* float16, which overflows in model\.layers\.0\."):
        train_student(recipe, student, data)


def test_a_student_that_diverges_is_not_blamed_on_the_teacher(language, tmp_path):
    student, data = language
    with torch.no_grad():
        student.model.norm.weight[0] = torch.nan
    with pytest.raises(NotFiniteError, match=r"before these weights changed\. Check these rows"):
        made(DistillationTrainer, student, data, tmp_path, save_strategy="steps", save_steps=2).train()


def test_a_resumed_run_is_the_run(bert_folder, tokenizer, tmp_path):
    """With projections, which are no part of the model."""
    teacher = BertModel.from_pretrained(bert_folder).eval()
    data = replace(Embedding().prepare(load_examples(TEXTS), tokenizer, teacher.config), teacher=teacher)
    torch.manual_seed(0)
    student = BertModel(bert_config(hidden_size=16, num_hidden_layers=2, intermediate_size=32)).eval()
    recipe = Distillation(steps=8, losses={"hidden": 1.0}, batch_size=8, checkpoint_every=4, learning_rate=3e-3)
    whole, curve = train_student(recipe, student, data, work=tmp_path / "one")
    assert (tmp_path / "one" / "checkpoint-4" / "hidden_projections.safetensors").is_file()
    (tmp_path / "one" / "checkpoint-8").rename(tmp_path / "last")
    again, rest = train_student(recipe, student, data, work=tmp_path / "one", resume=True)
    assert [loss for _, loss in rest] == pytest.approx([loss for _, loss in curve])
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_several_teachers_count_by_their_weights(language):
    student, data = language
    other = randomize_weights_(LlamaForCausalLM(student.config), seed=3).requires_grad_(False)
    batch = next(data.batches(data.train, 4))
    settings = ObjectiveSettings({"kl": 1.0, "task": 0.5}, temperature=1.0)

    def value(*teachers):
        result = build(student, teachers, CausalLM(), batch, settings)(student, batch)
        return float(result.terms["kl"]), float(result.terms["task"]), float(result.loss.detach())

    one, two = value(LiveTeacher(data.teacher)), value(LiveTeacher(other))
    both = value(LiveTeacher(data.teacher, 3.0), LiveTeacher(other, 1.0))
    assert both[0] == pytest.approx(0.75 * one[0] + 0.25 * two[0], rel=1e-5)
    assert both[1] == pytest.approx(one[1]) == pytest.approx(two[1])
    assert both[2] == pytest.approx(both[0] + 0.5 * both[1], rel=1e-5)


@pytest.mark.parametrize("large", [1, 10**9])
def test_who_learns_from_labels_alone_asks_the_teacher_only_how_far_they_agree(language, large, monkeypatch):
    monkeypatch.setattr("hf_pe.distill.build.LARGE", large)
    student, data = language
    batch = next(data.batches(data.train, 4))
    settings = ObjectiveSettings({"task": 1.0}, temperature=1.0)
    objective = build(student, [LiveTeacher(data.teacher)], CausalLM(), batch, settings)
    assert (objective.head is None) == (large > 1)
    asked = []
    handle = data.teacher.register_forward_hook(lambda *_: asked.append(1))
    alone, with_agreement = objective(student, batch), objective(student, batch, agreement=True)
    handle.remove()
    assert len(asked) == 1
    assert alone.loss == with_agreement.loss
    assert alone.terms.keys() == {"task"}
    assert with_agreement.terms.keys() == {"task", "agreement"}


def test_teachers_of_other_depth_and_width_are_each_learnt_from_by_their_own_layers(language):
    student, data = language
    sizes = {"num_hidden_layers": student.config.num_hidden_layers + 2, "hidden_size": 2 * student.config.hidden_size}
    config = LlamaConfig(**student.config.to_dict() | sizes | {"head_dim": None})
    other = randomize_weights_(LlamaForCausalLM(config), seed=3).requires_grad_(False)
    batch = next(data.batches(data.train, 4))
    settings = ObjectiveSettings({"hidden": 1.0}, temperature=1.0)
    teachers = [LiveTeacher(data.teacher, 3.0), LiveTeacher(other, 1.0)]
    both = build(student, teachers, CausalLM(), batch, settings)
    near, far = both.layer_mappings
    assert not near.projections
    assert far.pairs[-1] == (student.config.num_hidden_layers, config.num_hidden_layers)
    assert [p.weight.shape for p in both.projections] == [(config.hidden_size, student.config.hidden_size)] * len(
        far.pairs
    )
    alone = [
        float(replace(both, teachers=[t], layer_mappings=[mapping])(student, batch).loss.detach())
        for t, mapping in zip(teachers, both.layer_mappings, strict=True)
    ]
    assert float(both(student, batch).loss.detach()) == pytest.approx(0.75 * alone[0] + 0.25 * alone[1], rel=1e-5)


def test_features_without_a_bridge_are_refused(classifier_folder, tokenizer, tmp_path):
    teacher = BertForSequenceClassification.from_pretrained(classifier_folder).eval().requires_grad_(False)
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *(f"{t},{i % 2}" for i, t in enumerate(TEXTS))]))
    examples = load_examples(DataConfig(train=str(tmp_path / "a.csv"), label="label"))
    data = TextClassification().prepare(examples, tokenizer, teacher.config)
    student = randomize_weights_(BertForSequenceClassification(teacher.config), seed=9)
    options = {"train_dataset": data.train, "data_collator": data.collate, "args": arguments(tmp_path / "out")}
    with pytest.raises(UsageError, match="needs the teacher's head behind a stitching layer"):
        DistillationTrainer(
            model=student, teacher=teacher, task="text_classification", losses={"features": 1.0}, **options
        )


@pytest.fixture(scope="module")
def two_processes(llama_folder, tmp_path_factory):
    """What two processes wrote down: starting them takes longer than all their trainings."""
    output = tmp_path_factory.mktemp("two_processes")
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    script = Path(__file__).with_name("many_processes.py")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0",
         "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", script, llama_folder, output],
        env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return output


@pytest.mark.slow
@pytest.mark.xdist_group("two processes")
@pytest.mark.parametrize("name", many_processes.SETTINGS)
def test_two_processes_have_the_loss_curve_of_one(name, two_processes, llama_folder, tmp_path, monkeypatch):
    losses, large = many_processes.SETTINGS[name]
    monkeypatch.setattr("hf_pe.distill.build.LARGE", large)
    many_processes.train(llama_folder, tmp_path, 8, losses)
    folders = tmp_path, two_processes / name
    one, two = (json.loads((folder / "curve.json").read_text()) for folder in folders)
    assert len(one) == 6
    assert two == pytest.approx(one, rel=1e-3)
    assert [sorted(p.name for p in f.glob("checkpoint-*")) for f in folders] == [["checkpoint-3", "checkpoint-6"]] * 2
    weights = [list(LlamaForCausalLM.from_pretrained(folder / "checkpoint-6").parameters()) for folder in folders]
    for a, b in zip(*weights, strict=True):
        assert (a - b).norm() < 3e-3 * a.norm()  # Adam makes much of gradients near nothing


@pytest.mark.slow
@pytest.mark.xdist_group("two processes")
def test_sharded_student_and_teacher_learn_as_whole_ones_do(two_processes):
    result = json.loads((two_processes / "sharded.json").read_text())
    assert result["sharded"] == [True, True]
    assert result["curve"] == pytest.approx(result["whole"], rel=1e-3)
    assert result["curve"][-1] < result["curve"][0]
