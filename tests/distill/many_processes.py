"""Run by torch.distributed.run: MODEL OUTPUT. Trains with each of `SETTINGS`, then a student that is sharded."""

import json
import os
import sys
from pathlib import Path

import datasets
import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments, default_data_collator

from hf_pe.distill import DistillationTrainer, build
from hf_pe.dummies.tiny import randomize_weights_
from tests.distill import sharded

SETTINGS = {"kl": ("kl,task", 4096), "hidden": ("hidden", 4096), "chunks": ("kl,hidden", 1)}
"""Losses, and from how many words on those of logits go in chunks."""


def blocks():
    """The same 48 rows everywhere, of different length and with labels on their last 1 to 11 tokens."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(6, 190, (48, 12), generator=draw)
    labelled = torch.arange(12) >= torch.randint(1, 12, (48, 1), generator=draw)
    mask = torch.arange(12) < torch.randint(2, 13, (48, 1), generator=draw)
    labels = ids.masked_fill(~(labelled & mask), -100)
    columns = {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}
    return datasets.Dataset.from_dict({name: column.tolist() for name, column in columns.items()})


def train(model, output, batch, losses):
    """Train on all processes that there are; the first one writes down the loss curve."""
    teacher = LlamaForCausalLM.from_pretrained(model).requires_grad_(False)
    config = LlamaConfig.from_pretrained(model)
    if "hidden" in losses:
        config.update({"hidden_size": 32, "head_dim": 8})
    student = randomize_weights_(LlamaForCausalLM(config), seed=9)
    trainer = DistillationTrainer(
        model=student,
        args=TrainingArguments(
            output_dir=output, max_steps=6, per_device_train_batch_size=batch, logging_steps=1, use_cpu=True,
            learning_rate=1e-3, save_steps=3, report_to="none", disable_tqdm=True, seed=0,
        ),
        train_dataset=blocks(),
        data_collator=default_data_collator,
        teacher=teacher,
        task="causal_lm",
        losses=dict.fromkeys(losses.split(","), 1.0),
    )  # fmt: skip
    trainer.train()
    if trainer.args.process_index == 0:
        curve = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        Path(output, "curve.json").write_text(json.dumps(curve))


def main(model, output):
    for name, (losses, build.LARGE) in SETTINGS.items():
        train(model, Path(output, name), 8 // int(os.environ["WORLD_SIZE"]), losses)
    sharded.main(model, Path(output, "sharded.json"))


if __name__ == "__main__":
    main(*sys.argv[1:])
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    os._exit(0)  # all is written; threads of libraries that are left may end a process by a signal on its way out
