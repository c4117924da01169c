"""Distil a MiniLM classifier on SST-2 into three of its layers, and compare with fine-tuning them on the labels.

The student is the teacher cut to three layers, without use of the dev split; both learn for the same steps on the
same rows. Needs ../shared/data/sst2. Seeds: --seeds (default 5), from --first on; the results of a seed are stored
under build/, so that seeds may run at the same time and a last run collects them.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import bootstrap, gain, row, write
from prune_sst2 import lessons, right

from hf_pe.distill import Distillation
from hf_pe.prune import StructuredPruning
from hf_pe.recipe import StageState

STEPS, BATCH, RATE = 900, 16, 2e-4
WAYS: dict[str, dict[str, Any]] = {
    "hf_pe": {"losses": {"kl": 1.0, "hidden": 1.0, "task": 0.2}},
    "fine-tuned without teacher": {"losses": {"task": 1.0}, "dropout": True},
}


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--first", type=int, default=0)
    count, first = arguments.parse_args().seeds, arguments.parse_args().first
    settings_hash = hashlib.sha256(repr((STEPS, BATCH, RATE, WAYS)).encode()).hexdigest()[:12]
    folder = Path("build", "bench", f"distill_sst2-{settings_hash}")
    folder.mkdir(parents=True, exist_ok=True)
    teacher, data, test = lessons()
    dense = right(teacher, test)
    cut = StructuredPruning(keep={"layers": 3}, depth="greedy", refit="sequential")
    student = cut.carry_out(StageState(teacher, data)).model
    right_by_way: dict[str, list[np.ndarray]] = {name: [] for name in WAYS}
    for seed in range(first, count):
        for name, way in WAYS.items():
            kept = folder / f"{seed}-{[*WAYS].index(name)}.npy"
            if not kept.exists():
                recipe = Distillation(steps=STEPS, batch_size=BATCH, learning_rate=RATE, seed=seed, **way)
                np.save(kept, right(recipe.carry_out(StageState(student, data)).model, test))
            right_by_way[name].append(np.load(kept))
            print(seed, name, f"{right_by_way[name][-1].mean():.4f} of {dense.mean():.4f}", flush=True)
        if len(right_by_way["hf_pe"]) > 1:
            write("distill_sst2", figures(dense, right_by_way))


def figures(dense: np.ndarray, right_by_way: dict[str, list[np.ndarray]]) -> list[dict[str, Any]]:
    """Return the rows on the share of the teacher's accuracy that is kept, and on the gain over training without it."""
    ours, alone = (np.array([v.mean() for v in values]) for values in right_by_way.values())
    setting = (
        f"MiniLM on SST-2 (test accuracy {dense.mean():.4f}) cut to 3 of 6 layers, {STEPS} steps of {BATCH} rows, "
        f"{torch.get_num_threads()} threads; mean over {len(ours)} seeds"
    )
    return [
        row(
            "distil.4.sst2",
            float(ours.mean() / dense.mean()),
            0.98,
            "higher",
            "of the teacher's accuracy",
            f"{setting}; interval over examples (paired bootstrap)",
            peers={"fine-tuned without teacher": float(alone.mean() / dense.mean())},
            interval=bootstrap(
                lambda i: np.mean([v[i].mean() for v in right_by_way["hf_pe"]]) / dense[i].mean(), len(dense)
            ),
        ),
        gain("distil.4.sst2.gain", ours, alone, "the student without teacher", setting),
    ]


if __name__ == "__main__":
    main()
