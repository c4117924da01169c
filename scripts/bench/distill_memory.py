"""Measure the peak memory of a distillation over a large vocabulary, with logits in chunks and with full logits.

A Llama of two layers with a vocabulary of 128,000, tied, learns from a second one by the `distil` recipe: checks, plan,
probes, steps with AdamW, and the end. One sequence of 2,048 tokens a step; 16 rows to look at first. Each way in a
fresh process, in turns; memory is counted from when both models are loaded.
"""

import argparse
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import datasets
import torch
from common import Clock, row, write
from transformers import LlamaConfig, LlamaForCausalLM, default_data_collator

from hf_pe.data import DataConfig, Examples
from hf_pe.distill import Distillation, build, training
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.fresh.open_model import _anonymous, _watch
from hf_pe.recipe import StageState
from hf_pe.tasks import CausalLM, TaskData

VOCABULARY, TOKENS, WIDTH, LAYERS, ROWS, STEPS, ROUNDS, GOAL = 128_000, 2_048, 576, 2, 16, 3, 1, 0.3


def models() -> tuple[LlamaForCausalLM, TaskData]:
    """Return the student, and the rows with the teacher."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=1536, num_hidden_layers=LAYERS,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=TOKENS, tie_word_embeddings=True,
    )  # fmt: skip
    student, teacher = (randomize_weights_(LlamaForCausalLM(config), seed=seed).eval() for seed in (0, 1))
    ids = torch.randint(0, VOCABULARY, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0)).tolist()
    rows = datasets.Dataset.from_dict({"input_ids": ids, "labels": ids})
    examples = Examples(rows, rows, DataConfig(train="random tokens"), "")
    return student, replace(TaskData(CausalLM(), None, rows, rows, default_data_collator, examples), teacher=teacher)


def once(way: str) -> None:
    """Print peak bytes, seconds until the first step is done, seconds a step, the last loss, how far the head moved."""
    if way == "plain":
        build.LARGE = 10**9
    student, data = models()
    recipe = Distillation(steps=STEPS, batch_size=1, losses={"kl": 1.0}, learning_rate=1e-4, warmup=0.0)
    clock = Clock()
    trainer = training.DistillationTrainer

    class Timed(trainer):  # type: ignore[misc, valid-type]
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(clock)

    training.DistillationTrainer = Timed
    floor, peak, stop = _anonymous(), [0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(peak, stop))
    watcher.start()
    start = time.perf_counter()
    recipe.check(StageState(student, data))
    recipe.plan(StageState(student, data))
    after = recipe.carry_out(StageState(student, data))
    trained, curve = after.model, list(after.losses)
    stop.set()
    watcher.join()
    moved = (trained.lm_head.weight - student.lm_head.weight).norm()
    print(peak[0] - floor, clock.times[0] - start, clock.step(), curve[-1][1], float(moved.detach()))


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--once", choices=("plain", "chunked"))
    way = arguments.parse_args().once
    if way:
        once(way)
        return
    runs: dict[str, list[list[float]]] = {"plain": [], "chunked": []}
    for _ in range(ROUNDS):
        for name, values in runs.items():
            command = [sys.executable, str(Path(__file__)), "--once", name]
            values.append([float(v) for v in subprocess.check_output(command, text=True).split()])
            print(name, values[-1], flush=True)
    peak, first, step = ({n: statistics.median(v[i] for v in values) for n, values in runs.items()} for i in range(3))
    for i in (3, 4):
        plain_value, chunked_value = (runs[name][0][i] for name in runs)
        assert abs(plain_value - chunked_value) <= 1e-3 * abs(plain_value), (
            f"chunked is not plain: {plain_value} and {chunked_value}"
        )
    weights = VOCABULARY * WIDTH * 4 / 2**20
    setting = (
        f"the distil recipe from its check to its end: Llama of {LAYERS} layers, width {WIDTH}, vocabulary "
        f"{VOCABULARY:,} (tied: {weights:.0f} MB, of which the training holds a copy, the gradient and both moments of "
        f"AdamW), KL, {STEPS} steps of {TOKENS:,} tokens, float32; above both models; median of {ROUNDS} fresh "
        f"processes each; whole logits of both: {peak['plain'] / 2**20:,.0f} MB, {step['plain']:.1f} s a step; in "
        f"chunks of 128 tokens: {peak['chunked'] / 2**20:,.0f} MB, {step['chunked']:.1f} s a step, the first one done "
        f"{first['chunked']:.1f} s after the beginning"
    )
    write(
        "distill_memory",
        [
            row(
                "distil.3.memory",
                peak["chunked"] / peak["plain"],
                GOAL,
                "lower",
                "of the peak of whole logits",
                setting,
            ),
            row(
                "distil.3.time",
                step["chunked"] / step["plain"],
                1.05,
                "lower",
                "of the time of whole logits",
                f"{setting}; goal: that of distil.1",
            ),
        ],
    )


if __name__ == "__main__":
    main()
