"""A student is evaluated during training on rows that it does not learn from, and its best weights are the result."""

import itertools
import shutil
from dataclasses import replace

import datasets
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_pe import progress
from hf_pe.data import DataConfig, load_examples
from hf_pe.distill import Distillation, training
from hf_pe.distill.checkpoint import last_whole_checkpoint
from hf_pe.distill.kept_weights import FILE
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import UsageError
from hf_pe.recipe import StageState
from hf_pe.tasks import CausalLM
from tests.helpers import TEXTS

SETTINGS = {"steps": 32, "batch_size": 8, "losses": {"task": 1.0}, "learning_rate": 1e-2, "evaluation_share": 0.3}


@pytest.fixture(scope="module")
def models(tokenizer):
    """A student, and data with enough blocks to hold some out; dropout shows whether random numbers are disturbed."""
    config = LlamaConfig(
        vocab_size=200, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, attention_dropout=0.1, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    texts = [f"{text} {again}" for text, again in itertools.product(TEXTS, TEXTS[:3])]
    examples = load_examples((texts, DataConfig(train="texts", max_length=10)))
    data = CausalLM().prepare(examples, tokenizer, config)
    assert len(data.train) >= 640
    teacher = randomize_weights_(LlamaForCausalLM(config))
    return randomize_weights_(LlamaForCausalLM(config), seed=1).eval(), replace(data, teacher=teacher)


@pytest.fixture(autouse=True)
def ticks(monkeypatch):
    """A clock that counts its calls: an evaluation takes as long as the training between two calls."""
    monkeypatch.setattr(training, "clock", itertools.count().__next__)


def trained(models, *, work=None, resume=False, **settings):
    recipe, (student, data) = Distillation(**{**SETTINGS, **settings}), models
    state = StageState(student, data, checkpoints=work, resume=resume)
    return recipe.apply(state, recipe.dry_run(state.spec)[0])


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def explode(monkeypatch, since):
    """Let the learning rate be far too high from a step on."""

    class Exploding(training.Progress):
        def on_pre_optimizer_step(self, args, state, control, optimizer=None, **_):
            if state.global_step >= since:
                for group in optimizer.param_groups:
                    group["lr"] = 3.0

    monkeypatch.setattr(training, "Progress", Exploding)


def values(after):
    return {each.step: each.value for each in after.curve.evaluations}


def test_the_student_is_evaluated_before_between_and_after_and_the_last_weights_stay_where_they_are_best(models):
    after = trained(models)
    steps = [each.step for each in after.curve.evaluations]
    assert steps[0] == 0 and steps[-1] == 32 and len(steps) > 2
    assert after.curve.kept_step == 32
    assert values(after)[32] < 0.7 * values(after)[0]
    seconds = [each.seconds for each in after.curve.evaluations]
    assert seconds == sorted(seconds) and not after.curve.warnings
    assert 32 <= after.curve.rows <= 64 and after.curve.metric == "perplexity"


def test_what_a_late_explosion_ruins_is_not_the_result(models, monkeypatch):
    explode(monkeypatch, since=17)
    after = trained(models)
    curve = after.curve
    assert 8 <= curve.kept_step <= 17
    assert values(after)[32] > 2 * values(after)[curve.kept_step]
    assert "kept" in curve.sentence
    again = trained(models, steps=32, evaluation_share=0)
    assert not same(after.model, again.model)
    data = models[1]
    kept, ruined = (CausalLM().evaluate(each.model, data).scores()["perplexity"] for each in (after, again))
    assert 2 * kept < ruined


def test_where_no_evaluation_is_as_good_as_before_training_the_student_is_returned_as_it_was(models, monkeypatch):
    explode(monkeypatch, since=0)
    lines = []
    with progress.listen(lambda what, done, total: lines.append(what)):
        after = trained(models)
    assert after.curve.kept_step == 0
    assert same(after.model, models[0])
    (warning,) = after.curve.warnings
    assert "Lower learning_rate" in warning and f"Warning: {warning}" in lines


def test_rows_that_are_held_out_are_not_trained_on(models, monkeypatch):
    student, data = models
    numbered = [{"input_ids": [6 + row // 100, 6 + row % 100, 7, 8]} for row in range(700)]  # each row is its number
    rows = datasets.Dataset.from_list([row | {"labels": row["input_ids"]} for row in numbered])
    read = []

    class Watched(training.LimitedTrainer):
        def training_step(self, model, inputs, *rest):
            read.extend(tuple(ids.tolist()) for ids in inputs["input_ids"])
            return super().training_step(model, inputs, *rest)

    monkeypatch.setattr(training, "LimitedTrainer", Watched)
    after = trained((student, replace(data, train=rows)), steps=50, batch_size=16)  # more than one epoch
    assert after.curve.rows == 35
    assert len(set(read)) == 700 - 35
    assert len(read) > 700


def test_evaluations_leave_the_training_as_it_is(models, monkeypatch):
    """The weights after the last step are those of a training on the same rows without evaluations."""
    plain = training.StudentEvaluation
    evaluated = trained(models, dropout=True)
    assert evaluated.curve.kept_step == 32

    class Never(plain):
        def _evaluate(self, state, *, is_last=False):
            pass

        on_train_begin = on_step_end = on_train_end = training.TrainerCallback.on_train_begin

    monkeypatch.setattr(training, "StudentEvaluation", Never)
    monkeypatch.setattr(training, "_selected_", lambda evaluation, last_step: None)
    assert same(evaluated.model, trained(models, dropout=True).model)


def test_without_a_share_there_is_no_evaluation_and_all_rows_are_trained_on(models):
    after = trained(models, evaluation_share=0)
    assert after.curve is None


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"evaluation_share": 0.05}, "allows fewer than 32 rows"), ({}, "fewer than 640 training rows")],
)
def test_where_no_rows_can_be_held_out_the_reason_is_stated(models, settings, reason):
    student, data = models
    few = replace(data, train=data.train.select(range(400)))
    lines = []
    with progress.listen(lambda what, done, total: lines.append(what)):
        after = trained((student, few), **settings)
    assert after.curve is None
    assert any(reason in line for line in lines)


@pytest.mark.parametrize("stop", [8, 24])
def test_a_resumed_training_has_the_same_curve_and_the_same_result(models, monkeypatch, tmp_path, stop):
    explode(monkeypatch, since=17)
    work = tmp_path / "whole"
    whole = trained(models, work=work, checkpoint_every=8)
    assert whole.curve.kept_step not in (0, 32)
    stopped = tmp_path / "stopped"
    monkeypatch.setattr(training, "LimitedTrainer", stopping(stop))
    with pytest.raises(KeyboardInterrupt):
        trained(models, work=stopped, checkpoint_every=8)
    monkeypatch.undo()
    monkeypatch.setattr(training, "clock", itertools.count().__next__)
    explode(monkeypatch, since=17)
    assert last_whole_checkpoint(stopped).endswith(f"checkpoint-{stop}")
    resumed = trained(models, work=stopped, resume=True, checkpoint_every=8)
    assert [each.step for each in resumed.curve.evaluations] == [each.step for each in whole.curve.evaluations]
    assert values(resumed) == pytest.approx(values(whole), rel=1e-3)
    assert resumed.curve.kept_step == whole.curve.kept_step
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def stopping(after):
    class Stopping(training.LimitedTrainer):
        def training_step(self, *arguments):
            if self.state.global_step > after:
                raise KeyboardInterrupt
            return super().training_step(*arguments)

    return Stopping


def test_a_training_that_had_ended_has_its_best_weights_and_its_curve(models, monkeypatch, tmp_path):
    explode(monkeypatch, since=17)
    whole = trained(models, work=tmp_path / "one", checkpoint_every=8)
    again = trained(models, work=shutil.copytree(tmp_path / "one", tmp_path / "two"), resume=True, checkpoint_every=8)
    assert again.curve.evaluations == whole.curve.evaluations and again.curve.kept_step == whole.curve.kept_step
    assert same(again.model, whole.model)


def test_minutes_hold_out_as_many_rows_as_there_is_time_to_evaluate(models, monkeypatch, tmp_path):
    limited = {"steps": None, "minutes": 1.0, "evaluation_share": 0.3}
    assert trained(models, **limited).curve.rows > 40  # 32 examples take one tick of the clock
    slow = itertools.count(step=7).__next__  # 41 examples in the 9 seconds of an evaluation
    monkeypatch.setattr(training, "clock", slow)
    after = trained(models, work=tmp_path, checkpoint_every=2, **limited)
    assert after.curve.rows == 41
    monkeypatch.setattr(training, "clock", itertools.count(step=20).__next__)
    shutil.rmtree(tmp_path / f"checkpoint-{after.curve.last_step}")
    assert trained(models, work=tmp_path, resume=True, checkpoint_every=2, **limited).curve.rows == 41
    assert trained(models, **limited).curve is None


def test_patience_ends_a_training_that_no_longer_helps(models, monkeypatch):
    explode(monkeypatch, since=9)
    after = trained(models, patience=2)
    last = after.curve.evaluations[-1].step
    assert last == after.curve.last_step < 32
    assert max(step for step, _ in after.losses) <= last
    assert after.curve.kept_step <= 10


def test_patience_without_evaluations_is_refused():
    with pytest.raises(UsageError, match="patience counts evaluations"):
        Distillation(patience=2, evaluation_share=0)


def test_adapters_alone_are_kept(models, monkeypatch, tmp_path):
    explode(monkeypatch, since=17)
    after = trained(models, work=tmp_path, lora={"rank": 2}, learning_rate=1e-2)
    assert 0 < after.curve.kept_step < 32
    stored = torch.load(tmp_path / FILE, weights_only=True)
    assert stored and all("lora" in name for name in stored)


def test_a_disk_without_space_keeps_the_last_weights_and_the_curve(models, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("hf_pe.distill.kept_weights.shutil.disk_usage", lambda path: usage)
    curve = trained(models).curve
    assert curve.kept_step is None and len(curve.evaluations) > 2
    assert "nothing was selected" in curve.sentence
