"""A student of three layers of a MiniLM classifier on SST-2, taught, beside the same student fine-tuned on the labels.

The student is the teacher cut to three layers, by which the dev split is not seen; both learn for the same steps on the
same rows. Needs ../shared/data/sst2. Seeds: --seeds (default 5), from --first on; what a seed gave is kept under
build/, so that seeds may run beside each other and a last run gathers them.
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
    told = hashlib.sha256(repr((STEPS, BATCH, RATE, WAYS)).encode()).hexdigest()[:12]
    place = Path("build", "bench", f"distill_sst2-{told}")
    place.mkdir(parents=True, exist_ok=True)
    teacher, data, test = lessons()
    dense = right(teacher, test)
    cut = StructuredPruning(keep={"layers": 3}, depth="greedy", refit="sequential")
    student = cut.carry_out(StageState(teacher, data)).model
    found: dict[str, list[np.ndarray]] = {name: [] for name in WAYS}
    for seed in range(first, count):
        for name, way in WAYS.items():
            kept = place / f"{seed}-{[*WAYS].index(name)}.npy"
            if not kept.exists():
                recipe = Distillation(steps=STEPS, batch_size=BATCH, learning_rate=RATE, seed=seed, **way)
                np.save(kept, right(recipe.carry_out(StageState(student, data)).model, test))
            found[name].append(np.load(kept))
            print(seed, name, f"{found[name][-1].mean():.4f} of {dense.mean():.4f}", flush=True)
        if len(found["hf_pe"]) > 1:
            write("distill_sst2", figures(dense, found))


def figures(dense: np.ndarray, found: dict[str, list[np.ndarray]]) -> list[dict[str, Any]]:
    """What is kept of the teacher's accuracy, and how much more than without a teacher."""
    ours, alone = (np.array([v.mean() for v in values]) for values in found.values())
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
            interval=bootstrap(lambda i: np.mean([v[i].mean() for v in found["hf_pe"]]) / dense[i].mean(), len(dense)),
        ),
        gain("distil.4.sst2.gain", ours, alone, "the student without teacher", setting),
    ]


if __name__ == "__main__":
    main()
