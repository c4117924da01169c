"""Make the quickstart's figures and its committed card: time in a fresh clone, sizes, speed, quality, and its controls.

Needs ../shared/data/sts-b beside the checkout. Takes about 15 minutes on two cores.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import ROOT, SHARED, bootstrap, row, write
from scipy.stats import spearmanr
from transformers import AutoModel, PreTrainedModel

from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.processor import load_processor
from hf_pe.checkpoints.source import resolve
from hf_pe.data import DataConfig, load_examples, load_for_evaluation
from hf_pe.hub import write_card
from hf_pe.recipe import StageState
from hf_pe.recipe_file import read_recipe
from hf_pe.report import read_report
from hf_pe.tasks import Embedding, TaskData
from hf_pe.tasks.embedding import sentence_pairs


def fresh_run(folder: Path) -> float:
    """Clone what is committed and run the README's first command; return the seconds, installation included."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    start = time.perf_counter()
    env = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    subprocess.run(["./scripts/quickstart"], cwd=folder, check=True, env=env)
    return time.perf_counter() - start


def similarities(model: PreTrainedModel, data: TaskData) -> np.ndarray:
    """Return the cosines of the pairs of data.eval (scored pairs, else the quickstart's own pairs)."""
    embeddings = Embedding().embed(model, data, data.eval)
    if data.examples.config.label:
        half = len(embeddings) // 2
        return (embeddings[:half] * embeddings[half:]).sum(1)
    return (embeddings[:, None] * embeddings[sentence_pairs(len(embeddings), data.examples.config.seed)]).sum(2).ravel()


def agreement(cosines: np.ndarray, original_cosines: np.ndarray) -> tuple[float, list[float]]:
    """Return the Spearman correlation and its 95 % interval over pairs."""
    value = float(spearmanr(cosines, original_cosines).statistic)
    return value, bootstrap(lambda i: float(spearmanr(cosines[i], original_cosines[i]).statistic), len(cosines))


def random_student(small: PreTrainedModel, data: TaskData) -> PreTrainedModel:
    """Return the quickstart's student with random weights, trained alike; its embedding tables learn too."""
    recipe = read_recipe(ROOT / "recipes" / "quickstart.yaml")
    torch.manual_seed(0)
    student = type(small)(small.config).eval()
    for distil in recipe.recipes[1:]:
        student = distil.model_copy(update={"train_embeddings": True}).carry_out(StageState(student, data)).model
    return student


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "hf_pe")
        seconds = fresh_run(clone)
        result = clone / "build" / "quickstart" / "main"
        report = read_report(result)
        card = ROOT / "model_cards" / "quickstart"
        shutil.rmtree(card, ignore_errors=True)
        card.mkdir(parents=True)
        shutil.copyfile(result / "report.json", card / "report.json")
        write_card(report, card)
        small = AutoModel.from_pretrained(result).eval()

    recipe = read_recipe(ROOT / "recipes" / "quickstart.yaml")
    source = resolve(recipe.model)
    config = load_config(source)
    teacher = load_model(source, class_for(config, "AutoModel"))
    processor = load_processor(source)
    held_out = replace(Embedding().prepare(load_examples(recipe.data), processor, config), teacher=teacher)
    dev = str(SHARED / "data" / "sts-b" / "dev.tsv")
    pairs = DataConfig(train=dev, text="sentence1", text_pair="sentence2", label="score")
    sts = Embedding().prepare(load_for_evaluation(pairs), processor, config)
    gold = np.asarray(sts.examples.eval["score"], dtype=float)

    random = random_student(small, held_out)
    dense = similarities(teacher, held_out)
    ours, ours_interval = agreement(similarities(small, held_out), dense)
    control, _ = agreement(similarities(random, held_out), dense)
    scores = {
        name: similarities(model, sts) for name, model in (("dense", teacher), ("small", small), ("random", random))
    }
    rho = {name: float(spearmanr(s, gold).statistic) for name, s in scores.items()}
    kept = bootstrap(
        lambda i: float(
            spearmanr(scores["small"][i], gold[i]).statistic / spearmanr(scores["dense"][i], gold[i]).statistic
        ),
        len(gold),
    )
    share = report.after.parameters_without_embeddings / report.before.parameters_without_embeddings
    trained = " + ".join(f"{distil.steps} steps of {distil.batch_size}" for distil in recipe.recipes[1:])
    write(
        "ground_quickstart",
        [
            row("ground.params", share, 0.5, "lower", "ratio", "parameters without embeddings, after over before"),
            row("ground.agreement", ours, 0.95, "higher", "Spearman",
                f"student's with teacher's similarities, {len(dense)} pairs of held-out sentences, {trained}",
                peers={"random weights, trained alike": control}, interval=ours_interval),
            row("ground.stsb", rho["small"] / rho["dense"], 0.95, "higher", "ratio",
                f"STS-B dev Spearman kept: {rho['dense']:.4f} before, {rho['small']:.4f} after",
                peers={"random weights, trained alike": rho["random"] / rho["dense"]}, interval=kept),
            row("ground.wall", seconds / 60, 8, "lower", "minutes",
                "./scripts/quickstart in a fresh clone, installation (downloads from a near index) included"),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
