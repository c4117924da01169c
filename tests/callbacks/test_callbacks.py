"""The three callbacks on a stock Trainer, alone, together, after a resume and in two processes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import peft
import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import integration_utils

from hf_pe import CompressionReport, Publish, PublishCallback, QualityFloor, UsageError
from hf_pe.report import read_report
from tests.callbacks.two_processes import accuracy, rows
from tests.hub.faults import REPO, impatient
from tests.hub.server import TOKEN, Fault, Hub


@pytest.fixture
def hub():
    made = Hub()
    with impatient(5), made.serve():
        yield made


def trainer(folder, tokenizer, out, callbacks, teacher=None, **changes):
    data = datasets.Dataset.from_list(rows(tokenizer))
    settings = {
        "output_dir": str(out), "max_steps": 6, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2,
        "logging_steps": 1, "per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True,
        "disable_tqdm": True, "metric_for_best_model": "accuracy", "greater_is_better": True,
    }  # fmt: skip
    return Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(folder),
        args=TrainingArguments(**{**settings, **changes}),
        train_dataset=data,
        eval_dataset=data.select(range(16)),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=accuracy,
        callbacks=callbacks,
    )


@pytest.fixture
def teacher(classifier_folder):
    return AutoModelForSequenceClassification.from_pretrained(classifier_folder)


def scripted(metric, values):
    """A callback that gives the evaluations the values a test wants; put it first."""

    class Scripted(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics=None, **_):
            metrics[metric] = values[state.global_step]

    return Scripted()


def test_the_report_goes_to_where_report_to_says_and_into_a_file(
    classifier_folder, tokenizer, teacher, tmp_path, monkeypatch
):
    heard = []

    class Fake(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            heard.append(dict(logs))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Fake)
    made = CompressionReport(teacher, base_model="someone/tiny", license="mit")
    run = trainer(classifier_folder, tokenizer, tmp_path / "out", [made], report_to="tensorboard")
    run.train()
    ours = [logs for logs in heard if "compression/teacher_agreement" in logs]
    assert len(ours) == 3
    assert {"compression/parameters", "compression/latency_ms", "compression/latency_ratio"} <= set(ours[0])
    assert [e for e in run.state.log_history if "compression/parameters" in e]
    report = read_report(tmp_path / "out")
    assert report.after.parameters == teacher.num_parameters()
    assert report.after.quality["teacher_agreement"] == ours[-1]["compression/teacher_agreement"]
    assert report.pipeline_tag == "text-classification"


def test_an_unchanged_model_agrees_with_its_teacher(classifier_folder, tokenizer, teacher, tmp_path):
    made = CompressionReport(teacher)
    run = trainer(classifier_folder, tokenizer, tmp_path, [made], max_steps=1, learning_rate=0.0)
    run.add_callback(made)
    run.evaluate()
    assert next(iter(made.quality_by_weights.values()))["teacher_agreement"] == 1


def test_the_report_says_nothing_of_weights_that_were_not_evaluated(classifier_folder, tokenizer, teacher, tmp_path):
    made = CompressionReport(teacher)
    run = trainer(classifier_folder, tokenizer, tmp_path, [made], eval_strategy="no")
    run.evaluate()
    run.train()
    assert made.quality_by_weights
    assert read_report(tmp_path).after.quality == {}


def test_the_floor_stops_and_gives_the_best_back(classifier_folder, tokenizer, tmp_path):
    values = {2: 0.9, 4: 0.3, 6: 0.95}
    floor = QualityFloor("accuracy", 0.5)
    run = trainer(classifier_folder, tokenizer, tmp_path, [scripted("eval_accuracy", values), floor])
    run.train()
    assert run.state.global_step == 4
    kept = load_file(tmp_path / "best" / "model.safetensors")
    assert floor.best == 0.9
    assert all(torch.equal(v, run.model.state_dict()[k].cpu()) for k, v in kept.items())
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "best").config.num_labels == 2


def with_lora(model):
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)
    return peft.get_peft_model(model, config)


def with_prompts(model):
    return peft.get_peft_model(model, peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))


def with_added_lora(model):
    model.add_adapter(peft.LoraConfig(target_modules=["query"], init_lora_weights=False))
    return model


@pytest.mark.filterwarnings("ignore::UserWarning")  # of PEFT and its Trainer, about names
@pytest.mark.parametrize("wrapped", [with_lora, with_prompts, with_added_lora])
def test_the_floor_gives_the_best_adapters_back(classifier_folder, tokenizer, tmp_path, wrapped):
    values = {2: 0.9, 4: 0.3}
    trained_at_step = {}

    class Watch(TrainerCallback):
        def on_evaluate(self, args, state, control, model=None, **_):
            trained_at_step[state.global_step] = {
                n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad
            }

    floor = QualityFloor("accuracy", 0.5)
    callbacks = [scripted("eval_accuracy", values), Watch(), floor]
    run = trainer(classifier_folder, tokenizer, tmp_path, callbacks, learning_rate=0.1, save_strategy="no")
    run.model = run.model_wrapped = wrapped(run.model)
    run.train()
    assert run.state.global_step == 4
    now = dict(run.model.named_parameters())
    assert any(not torch.equal(trained_at_step[2][name], trained_at_step[4][name]) for name in trained_at_step[2])
    assert all(torch.equal(value, now[name]) for name, value in trained_at_step[2].items())


def several_sets(run):
    run.eval_dataset = {"dev": run.eval_dataset, "hard": run.eval_dataset}
    run.args.metric_for_best_model = "eval_dev_accuracy"
    return run


class ByName(TrainerCallback):
    """Gives the set "dev" the values of a test, and leaves the others."""

    def __init__(self, values):
        self.values = values

    def on_evaluate(self, args, state, control, metrics=None, **_):
        if "eval_dev_accuracy" in metrics:
            metrics["eval_dev_accuracy"] = self.values[state.global_step]


def test_the_floor_looks_at_one_of_several_evaluation_sets(classifier_folder, tokenizer, tmp_path):
    floor = QualityFloor("dev_accuracy", 0.5)
    callbacks = [ByName({2: 0.9, 4: 0.3}), floor]
    run = several_sets(trainer(classifier_folder, tokenizer, tmp_path, callbacks, save_strategy="no"))
    run.train()
    assert run.state.global_step == 4
    assert floor.best == 0.9


def test_a_metric_that_none_of_several_sets_has_is_named_with_theirs(classifier_folder, tokenizer, tmp_path):
    run = several_sets(
        trainer(classifier_folder, tokenizer, tmp_path, [QualityFloor("accuracy", 0.5)], save_strategy="no")
    )
    with pytest.raises(UsageError, match=r"gave no 'accuracy'; expected one of .*dev_accuracy.*hard_accuracy"):
        run.train()
    assert run.state.global_step == 2


def test_a_metric_that_is_no_number_is_under_the_floor_and_never_the_best(classifier_folder, tokenizer, tmp_path):
    floor = QualityFloor("accuracy", 0.5)
    run = trainer(classifier_folder, tokenizer, tmp_path, [scripted("eval_accuracy", {2: float("nan")}), floor])
    run.train()
    assert run.state.global_step == 2
    assert floor.best is None


def test_the_floor_remembers_the_best_over_a_resume(classifier_folder, tokenizer, tmp_path):
    first = trainer(
        classifier_folder, tokenizer, tmp_path,
        [scripted("eval_accuracy", {2: 0.9, 4: 0.8}), QualityFloor("accuracy", 0.5)], max_steps=4,
    )  # fmt: skip
    first.train()
    best = (tmp_path / "best" / "model.safetensors").read_bytes()
    floor = QualityFloor("accuracy", 0.5)
    again = trainer(
        classifier_folder, tokenizer, tmp_path, [scripted("eval_accuracy", {6: 0.85, 8: 0.7}), floor], max_steps=8
    )
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 8
    assert floor.best == 0.9
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == best


def test_the_readmes_lines_run(hub, classifier_folder, tokenizer, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_pe.hub.publish.HfApi", lambda: HfApi(endpoint=hub.url, token=TOKEN))
    text = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    lines = next(b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "CompressionReport" in b)
    data = datasets.Dataset.from_list(rows(tokenizer))
    names = {
        "Trainer": Trainer, "teacher": teacher, "tokenizer": tokenizer, "train": data, "dev": data.select(range(8)),
        "student": AutoModelForSequenceClassification.from_pretrained(classifier_folder),
    }  # fmt: skip
    names["args"] = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=2, eval_strategy="steps", eval_steps=1, save_strategy="no",
        use_cpu=True, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    exec(lines.replace('"USER/small"', f"{REPO!r}"), names)
    names["trainer"].compute_metrics = accuracy
    names["trainer"].data_collator = DataCollatorWithPadding(tokenizer)
    names["trainer"].callback_handler.callbacks.insert(0, scripted("eval_accuracy", {1: 0.9, 2: 0.7}))
    names["trainer"].train()
    assert names["trainer"].state.global_step == 2
    sent = json.loads(hub.contents(REPO)["report.json"])
    assert sent["after"]["quality"]["accuracy"] == 0.9, "the floor gave the best back, and the report is of that one"


def test_a_metric_that_is_not_there_is_named(classifier_folder, tokenizer, tmp_path):
    run = trainer(classifier_folder, tokenizer, tmp_path, [QualityFloor("f1", 0.5)], metric_for_best_model=None)
    with pytest.raises(UsageError, match=r"gave no 'f1'; expected one of .*eval_accuracy"):
        run.train()


def test_the_best_on_one_of_several_sets_is_published(teacher, tmp_path, monkeypatch):
    pushed, args = [], TrainingArguments(str(tmp_path), metric_for_best_model="dev_loss", report_to="none")
    publish = PublishCallback(REPO, CompressionReport(teacher), when="best")
    monkeypatch.setattr(publish, "_push", lambda args, state, *_: pushed.append(state.global_step))
    for step, loss in enumerate((0.5, 0.4, 0.6)):
        for metrics in ({"eval_hard_loss": 0.1}, {"eval_dev_loss": loss}):
            publish.on_evaluate(args, TrainerState(global_step=step), TrainerControl(), metrics)
        publish.on_step_begin(args, TrainerState(), TrainerControl())
    assert pushed == [0, 1]
    publish.on_evaluate(args, TrainerState(), TrainerControl(), {"eval_hard_loss": 0.1})
    with pytest.raises(UsageError, match=r"gave no 'dev_loss'; expected one of eval_hard_loss"):
        publish.on_step_begin(args, TrainerState(), TrainerControl())


@pytest.mark.parametrize(("when", "commits"), [("end", 1), ("best", 2), ("save", 3)])
def test_publishing_at_the_end_the_best_and_every_save(
    hub, classifier_folder, tokenizer, teacher, tmp_path, when, commits
):
    report = CompressionReport(teacher, base_model="someone/tiny", license="mit")
    api = HfApi(endpoint=hub.url, token=TOKEN)
    values = {2: 0.5, 4: 0.9, 6: 0.7}
    callbacks = [scripted("eval_accuracy", values), report, PublishCallback(REPO, report, when=when, api=api)]
    run = trainer(classifier_folder, tokenizer, tmp_path / "out", callbacks)
    run.train()
    repo = hub.repos[REPO]
    assert len(repo.commits) - 1 == commits
    files = hub.contents(REPO)
    sent = json.loads(files["report.json"])
    assert sent["after"]["quality"]["accuracy"] == (0.9 if when == "best" else 0.7)
    assert b"someone/tiny" in files["README.md"]


def test_publishing_the_best_goes_on_after_a_resume(hub, classifier_folder, tokenizer, teacher, tmp_path):
    api = HfApi(endpoint=hub.url, token=TOKEN)

    def run(values, steps):
        report = CompressionReport(teacher)
        callbacks = [scripted("eval_accuracy", values), report, PublishCallback(REPO, report, when="best", api=api)]
        return trainer(classifier_folder, tokenizer, tmp_path / "out", callbacks, max_steps=steps)

    run({2: 0.9}, 2).train()
    commits = len(hub.repos[REPO].commits)
    run({4: 0.8}, 4).train(resume_from_checkpoint=True)
    assert len(hub.repos[REPO].commits) == commits


def test_a_push_that_fails_on_the_way_is_made_up_for_at_the_end(hub, classifier_folder, tokenizer, teacher, tmp_path):
    report = CompressionReport(teacher)
    api = HfApi(endpoint=hub.url, token=TOKEN)
    hub.faults = [Fault("create repo", "500", times=4)]
    publish = PublishCallback(Publish(repo=REPO), report, when="save", api=api)
    trainer(classifier_folder, tokenizer, tmp_path / "out", [report, publish], max_steps=2).train()
    assert "model.safetensors" in hub.repos[REPO].commits[hub.repos[REPO].branches["main"]][1]


@pytest.mark.parametrize(
    ("made", "changes", "message"),
    [
        (lambda report: [QualityFloor("accuracy", 0.5)], {"eval_strategy": "no"}, "QualityFloor needs evaluations"),
        (
            lambda report: [report, PublishCallback(REPO, report, when="best")],
            {"eval_strategy": "no"},
            r'PublishCallback\(when="best"\) needs evaluations',
        ),
        (
            lambda report: [report, PublishCallback(REPO, report, when="save")],
            {"save_strategy": "no"},
            'when="save" pushes at every save, and save_strategy is "no"',
        ),
        (lambda report: [PublishCallback(REPO, report)], {}, "CompressionReport does not watch this training"),
        (lambda report: [PublishCallback(REPO, report), report], {}, "CompressionReport does not watch this training"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_before_training(
    classifier_folder, tokenizer, teacher, tmp_path, made, changes, message
):
    run = trainer(classifier_folder, tokenizer, tmp_path / "out", made(CompressionReport(teacher)), **changes)
    with pytest.raises(UsageError, match=message):
        run.train()
    assert run.state.global_step == 0


def test_publishing_without_a_tokenizer_is_refused_before_training(classifier_folder, tokenizer, teacher, tmp_path):
    report = CompressionReport(teacher)
    run = trainer(classifier_folder, tokenizer, tmp_path / "out", [report, PublishCallback(REPO, report)])
    run.callback_handler.processing_class = None
    with pytest.raises(UsageError, match="the Trainer has no processing_class"):
        run.train()


def test_a_bad_token_is_told_before_training(hub, classifier_folder, tokenizer, teacher, tmp_path):
    report = CompressionReport(teacher)
    publish = PublishCallback(REPO, report, api=HfApi(endpoint=hub.url, token="hf_wrong"))
    run = trainer(classifier_folder, tokenizer, tmp_path / "out", [report, publish])
    with pytest.raises(UsageError, match="hf auth login"):
        run.train()
    assert run.state.global_step == 0


@pytest.mark.slow
def test_two_processes_decide_alike_and_one_writes(hub, classifier_folder, tokenizer, tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    env |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    copied = shutil.copytree(classifier_folder, tmp_path / "model")
    script = Path(__file__).with_name("two_processes.py")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29611", script,
         copied, tmp_path / "out", REPO],
        env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = [json.loads((tmp_path / "out" / f"rank{i}.json").read_text()) for i in (0, 1)]
    assert said[0] == said[1]
    assert said[0]["step"] == 4, "the floor stopped both"
    assert hub.calls["commit"] == 1
    assert (tmp_path / "out" / "report.json").is_file()


def test_agreement_over_one_output_is_refused_before_training(teacher):
    teacher.config.num_labels = 1
    with pytest.raises(UsageError, match="regression are not supported yet"):
        CompressionReport(teacher).on_train_begin(
            TrainingArguments(report_to="none"), TrainerState(), TrainerControl(), model=teacher
        )


def test_a_folder_of_the_users_is_no_place_for_the_best_model(classifier_folder, tokenizer, tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"not written by hf-pe \(it has mine\.txt\)"):
        trainer(classifier_folder, tokenizer, tmp_path, [QualityFloor("accuracy", 0.5)]).train()
    assert not list(tmp_path.glob("checkpoint-*"))
