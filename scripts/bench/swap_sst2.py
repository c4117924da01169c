"""Swap the encoder of a MiniLM classifier for two layers of width 128, and compare with fine-tuning these alone.

The classifier is fine-tuned on SST-2. Both small models learn for the same steps on the same rows. The script needs
../shared/data/sst2; `--seeds` sets the number of seeds (default 5).
"""

from typing import Any

import numpy as np
import torch
from common import bootstrap, gain, row, seeds, write
from prune_sst2 import lessons, right
from transformers import set_seed

from hf_pe.backbones import BackboneSwap
from hf_pe.distill import Distillation
from hf_pe.measure import latency, parameters
from hf_pe.recipe import StageState

STEPS, BATCH, RATE = 430, 32, 1e-3
TRAINING: dict[str, Any] = {"steps": STEPS, "batch_size": BATCH, "learning_rate": RATE}
OURS: dict[str, Any] = {"losses": {"features": 1.0, "kl": 1.0, "task": 0.5}}


def main() -> None:
    count = seeds()
    teacher, data, test = lessons()
    dense = right(teacher, test)
    correct: dict[str, list[np.ndarray]] = {"stitching layer alone": [], "hf_pe": [], "fine-tuned alone": []}
    small: Any = None
    for seed in range(count):
        swap = BackboneSwap(to="bert_tiny", seed=seed)
        small = swap.carry_out(StageState(teacher, data)).model
        correct["stitching layer alone"].append(right(small, test))
        learned = Distillation(seed=seed, **TRAINING, **OURS).carry_out(StageState(small, data)).model
        correct["hf_pe"].append(right(learned, test))
        set_seed(seed)
        plain = type(small)(small.config)
        alone = (
            Distillation(seed=seed, losses={"task": 1.0}, dropout=True, **TRAINING)
            .carry_out(StageState(plain, data))
            .model
        )
        correct["fine-tuned alone"].append(right(alone, test))
        print(seed, {name: round(float(values[-1].mean()), 4) for name, values in correct.items()}, flush=True)
        write("swap_sst2", figures(teacher, small, dense, correct))


def figures(teacher: Any, small: Any, dense: np.ndarray, correct: dict[str, list[np.ndarray]]) -> list[dict[str, Any]]:
    """Return the rows of the gain over the encoder alone, of the teacher's accuracy kept, and of the stitching layer.

    `dense` and `correct` say of each test example whether the teacher and each student, once a seed, are right.
    """
    ours, alone, stitched = (
        np.array([v.mean() for v in correct[name]]) for name in ("hf_pe", "fine-tuned alone", "stitching layer alone")
    )
    latencies = latency({"teacher": teacher, "small": small}, batch=1, seconds=4.0)
    speed = latencies["teacher"].p50_ms / latencies["small"].p50_ms
    setting = (
        f"MiniLM on SST-2 ({parameters(teacher).total:,} parameters, test accuracy {dense.mean():.4f}) onto 2 layers "
        f"of width 128 ({parameters(small).total:,} parameters, {speed:.1f} times as fast at batch 1, length 128), "
        f"{STEPS} steps of {BATCH} rows, {torch.get_num_threads()} threads; mean over {len(ours)} seeds"
    )
    return [
        gain("swap.4.gain", ours, alone, "the same encoder fine-tuned alone", setting),
        row(
            "swap.4.kept",
            float(ours.mean() / dense.mean()),
            float(alone.mean() / dense.mean()),
            "higher",
            "of the teacher's accuracy",
            f"{setting}; goal: that of the encoder alone; interval over examples (paired bootstrap)",
            peers={"fine-tuned alone": float(alone.mean() / dense.mean())},
            interval=bootstrap(
                lambda i: np.mean([v[i].mean() for v in correct["hf_pe"]]) / dense[i].mean(), len(dense)
            ),
        ),
        row(
            "swap.3.sst2",
            float(stitched.mean()),
            0.5,
            "higher",
            "accuracy by the stitching layer alone",
            f"{setting.replace(f', {STEPS} steps of {BATCH} rows', '')}, nothing trained; goal: chance",
            peers={"chance": 0.5, "teacher": float(dense.mean())},
            interval=bootstrap(lambda i: np.mean([v[i].mean() for v in correct["stitching layer alone"]]), len(dense)),
        ),
    ]


if __name__ == "__main__":
    main()
