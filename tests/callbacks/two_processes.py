"""Run by torch.distributed.run in two processes: MODEL OUTPUT REPO. Each writes down how its training ended."""

import json
import os
import sys
from pathlib import Path

import datasets
import numpy as np
import torch.distributed as dist
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_pe import CompressionReport, PublishCallback, QualityFloor
from tests.helpers import TEXTS


def rows(tokenizer):
    """Sentences with a label that their words tell."""
    return [{**tokenizer(t), "labels": int("dog" in t)} for t in TEXTS]


def accuracy(prediction):
    return {"accuracy": float((np.argmax(prediction.predictions, -1) == prediction.label_ids).mean())}


class Noisy(TrainerCallback):
    """Metrics that fall, and differ a little between the processes."""

    def on_evaluate(self, args, state, control, metrics=None, **_):
        metrics["eval_accuracy"] = {2: 0.9, 4: 0.5}.get(state.global_step, 1.0) + 0.2 * args.process_index


def main(model, output, repo):
    tokenizer = AutoTokenizer.from_pretrained(model)
    data = datasets.Dataset.from_list(rows(tokenizer))
    teacher = AutoModelForSequenceClassification.from_pretrained(model)
    report = CompressionReport(teacher, base_model="someone/tiny", license="mit")
    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(model),
        args=TrainingArguments(
            output_dir=output, max_steps=8, eval_strategy="steps", eval_steps=2, save_strategy="no", report_to="none",
            per_device_train_batch_size=4, use_cpu=True, disable_tqdm=True,
        ),
        train_dataset=data,
        eval_dataset=data.select(range(16)),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=accuracy,
        callbacks=[Noisy(), report, QualityFloor("accuracy", 0.6), PublishCallback(repo, report)],
    )  # fmt: skip
    trainer.train()
    weights = sum(float(p.double().sum()) for p in trainer.model.parameters())
    said = {"step": trainer.state.global_step, "weights": weights}
    Path(output, f"rank{trainer.args.process_index}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # all is written; threads of libraries that are left may end a process by a signal on its way out
