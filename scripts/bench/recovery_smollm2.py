"""Recover SmolLM2-135M after a cut of its FFN width, or of 30 % of its parameters along any axes, in 20 minutes.

Every cut is trained by the defaults of hf_pe and by fine-tuning on the labels alone, at the best learning rate of a
grid. All runs have the same processor time, rows and precision. Perplexity, KL divergence to the original and top-1
agreement are measured on text of the training's kind (WikiText-2, test split) and of another kind (Python's language
reference). Needs ../shared/data/wikitext-2 and the extras gguf and bench. Options: --part ffn any, --seeds 0 1 2,
--minutes 20. A run takes its 20 minutes and some more; results are stored under build/, so runs can be spread over
calls (also at the same time, one part or seed each), and a call whose runs are all stored writes the figures.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
from common import bootstrap, row, write
from ground_smollm2 import LENGTH, blocks, losses, task_data
from peers import cut_to, torch_pruning_choices
from peers_llm import Block, block_taylor, flap, short_gpt
from prune_smollm2 import RECIPES, Bench
from recovery import FINE_TUNING, GRID, OURS, Store, best_rate, train
from torch import nn
from transformers import PreTrainedModel

from hf_pe.data import DataConfig, load_examples
from hf_pe.distill import Distillation
from hf_pe.dummies.inputs import example_inputs
from hf_pe.measure import parameters
from hf_pe.measure.nearness import nearness
from hf_pe.prune import StructuredPruning
from hf_pe.recipe import StageState

WIDTH, SHARE = 920, 0.3
"""FFN width of 1,536 that is left, and the share of all parameters outside embeddings that goes: the same size."""
TRIAL, TEST = 8, 24
"""Blocks of 512 tokens to choose by, and to measure on, of each text."""
TRIAL_MINUTES = 3
PARTS = ("ffn", "any")
WAYS: dict[str, dict[str, Any]] = {OURS: {}, FINE_TUNING: {"losses": {"task": 1.0}}}
"""Settings of each training; the rest are defaults, and fine-tuning has the learning rate of its grid."""
ALONG_ANY: dict[str, Any] = {"criterion": "obs_kfac", "refit": "sequential", "round_to": 8}
CUTS = {"ffn": "FFN 40 % removed (1536 to 920)", "any": "30 % of the parameters outside embeddings removed, any axes"}
UNITS = {
    "ppl": "perplexity on text of the training's kind",
    "other": "perplexity on another text",
    "kl": "KL divergence to the original on another text",
}
GOALS = {"ppl": 1.0, "other": 0.97, "kl": 0.9}
"""Of the best peer's: perplexity on text of the training's kind, on another text, KL divergence on the other text."""


class Recovery(Bench):
    """Makes the cuts of all methods, and trains them."""

    def __init__(self, minutes: float) -> None:
        super().__init__()
        self.minutes = minutes
        self.calibrate(0)
        everything = blocks(self.processor, "valid", 534)
        count = len(everything) - TRIAL
        rows, held = everything.select(range(count)), everything.select(range(count, len(everything)))
        self.lessons = replace(task_data(self.processor, rows, self.test), teacher=self.model)
        self.trial = task_data(self.processor, rows, held)
        reference = load_examples(DataConfig(train="builtin:pydoc"))
        ids = self.processor("\n\n".join(reference.train["text"]), verbose=False)["input_ids"]
        other = [ids[number * LENGTH : (number + 1) * LENGTH] for number in range(TEST)]
        texts = {
            "ppl": blocks(self.processor, "test", TEST),
            "other": datasets.Dataset.from_dict({"input_ids": other, "labels": other}),
        }
        self.texts = {name: task_data(self.processor, text, text) for name, text in texts.items()}
        settings = (minutes, TRIAL, TEST, TRIAL_MINUTES, RECIPES["hf_pe"], WIDTH, SHARE)
        self.store = Store("recovery_smollm2", settings)

    def cuts(self, part: str) -> dict[str, Callable[[], Iterator[PreTrainedModel]]]:
        """Return the methods of a part, each with what makes its grid of models."""
        narrow = {
            OURS: partial(self.narrowed, RECIPES["hf_pe"]),
            "activation x weight (reimplementation of structured Wanda)": partial(
                self.narrowed, {"criterion": "activation_weight", "refit": "none", "round_to": 4}
            ),
            "Torch-Pruning Taylor": self.torch_pruning,
        }
        if part == "ffn":
            return narrow
        saved = SHARE * parameters(self.model).without_embeddings
        return narrow | {
            OURS: self.ours_along_any,
            "block Taylor (reimplementation of LLM-Pruner)": lambda: map(
                without_zeros_, block_taylor(self.graded(), saved)
            ),
            "fluctuation (reimplementation of FLAP)": lambda: map(without_zeros_, flap(self.model, self.data, saved)),
            "block influence (reimplementation of ShortGPT)": lambda: short_gpt(self.model, self.data, SHARE),
        }

    def narrowed(self, fields: dict[str, Any]) -> Iterator[PreTrainedModel]:
        """Yield the model with a narrower FFN by one setting of hf_pe."""
        yield StructuredPruning(keep={"ffn": WIDTH}, **fields).carry_out(StageState(self.model, self.data)).model

    def torch_pruning(self) -> Iterator[PreTrainedModel]:
        """Yield the model with the FFN units of Torch-Pruning's Taylor importance, over its grid."""
        inputs = example_inputs(self.model, batch=1, length=8)
        for kept in torch_pruning_choices(self.graded(), self.axis, WIDTH, inputs)["Torch-Pruning Taylor"]:
            yield cut_to(self.model, kept, self.data)

    def ours_along_any(self) -> Iterator[PreTrainedModel]:
        """Yield the model that the sizes of hf_pe's own search give when training follows."""
        recipe = StructuredPruning(budget={"parameters": 1 - SHARE}, axes=["ffn", "kv_groups", "layers"], **ALONG_ANY)
        yield recipe.before([Distillation()]).carry_out(StageState(self.model, self.data)).model

    def cut(self, part: str, name: str) -> PreTrainedModel:
        """Return the best of the grid of a method on the trial rows; it is made once and stored."""
        folder = self.store.folder / "cuts" / f"{part}-{name.partition(' (')[0].replace(' ', '_')}.pt"
        if not folder.exists():
            best = min(self.cuts(part)[name](), key=self.badness)
            folder.parent.mkdir(parents=True, exist_ok=True)
            torch.save(best, folder.with_suffix(".part"))
            folder.with_suffix(".part").rename(folder)
        model: PreTrainedModel = torch.load(folder, weights_only=False)
        return model.eval()

    def best_peer(self, part: str) -> str:
        """Return the method other than hf_pe whose cut is best after a short fine-tuning."""
        names = [name for name in self.cuts(part) if name != OURS]
        return min(names, key=lambda name: self.rate(part, name)[1])

    def rate(self, part: str, name: str) -> tuple[float, float]:
        """Return the best learning rate of fine-tuning a cut, and the loss on the trial rows that it gave."""
        label = f"{part}, {name}, {FINE_TUNING}"
        return best_rate(
            self.store,
            label,
            partial(self.cut, part, name),
            self.lessons,
            TRIAL_MINUTES,
            self.badness,
            **WAYS[FINE_TUNING],
        )

    def trained(self, part: str, cut: str, way: str, seed: int) -> dict[str, Any]:
        """Return what a cut is worth after its training."""
        settings = WAYS[way] | ({"learning_rate": self.rate(part, cut)[0]} if way == FINE_TUNING else {})

        def run() -> dict[str, Any]:
            small, facts = train(self.cut(part, cut), self.lessons, self.minutes, seed=seed, **settings)
            return facts | self.facts(small)

        return self.store.get(f"{part}, {cut}, {way}, seed {seed}", run)

    def untrained(self, part: str, cut: str) -> dict[str, Any]:
        """Return what a cut is worth before training."""
        return self.store.get(f"{part}, {cut}", lambda: self.facts(self.cut(part, cut)))

    def facts(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return perplexities, KL divergences and agreements, with the values of each block."""
        facts = {}
        for text, data in self.texts.items():
            compared = nearness(self.model, model, data, data.eval).columns
            by_block = {name: compared[name] / compared["predictions"] for name in ("kl", "agreement")}
            by_block["nll"] = losses(model, data)
            facts |= {f"{text}.{name}": values.tolist() for name, values in by_block.items()}
            facts |= {f"{text}.mean_{name}": float(values.mean()) for name, values in by_block.items()}
        return facts


def without_zeros_(model: PreTrainedModel) -> PreTrainedModel:
    """Remove the FFN units and key-value groups that a method has set to zero, so that training does not pay for them.

    Blocks then differ in width, which a stock config cannot express; the modules in memory can.
    """
    for block in Block.all(model):
        mlp, attention = block.layer.mlp, block.layer.self_attn
        units = mlp.down_proj.weight.data.abs().sum(0).nonzero()[:, 0]
        by_group = attention.o_proj.weight.data.view(len(attention.o_proj.weight), block.groups, -1)
        groups = by_group.abs().sum((0, 2)).nonzero()[:, 0]
        for layer, kept in ((mlp.gate_proj, units), (mlp.up_proj, units)):
            keep_(layer, rows=kept)
        keep_(mlp.down_proj, columns=units)
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
            keep_(layer, rows=places(groups, block.groups, layer.out_features))
        keep_(attention.o_proj, columns=places(groups, block.groups, attention.o_proj.in_features))
    return model


def places(groups: torch.Tensor, count: int, width: int) -> torch.Tensor:
    """Return the positions of these groups in a dimension of `width` that `count` groups share evenly."""
    return torch.arange(width).view(count, -1)[groups].flatten()


def keep_(layer: nn.Linear, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None) -> None:
    """Keep these outputs or inputs of a linear layer, in place."""
    if rows is not None:
        layer.weight, layer.out_features = nn.Parameter(layer.weight.data[rows].clone()), len(rows)
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.data[rows].clone())
    if columns is not None:
        layer.weight, layer.in_features = nn.Parameter(layer.weight.data[:, columns].clone()), len(columns)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--part", nargs="+", default=PARTS, choices=PARTS)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--minutes", type=float, default=20)
    options = arguments.parse_args()
    recovery = Recovery(options.minutes)
    rows = []
    for part in options.part:
        peer = recovery.best_peer(part)
        arms = {(cut, way): cut for cut in (OURS, peer) for way in (OURS, FINE_TUNING)}
        results = {arm: [recovery.trained(part, *arm, seed) for seed in options.seeds] for arm in arms}
        before = {cut: recovery.untrained(part, cut) for cut in (OURS, peer)}
        rows += figures(part, results, before, recovery, options.minutes)
        write("recovery_smollm2", rows)


Arms = dict[tuple[str, str], list[dict[str, Any]]]
"""Results of the seeds, by cut and training."""


def figures(
    part: str, results: Arms, before: dict[str, dict[str, Any]], recovery: Recovery, minutes: float
) -> list[dict[str, Any]]:
    """Return the rows of a part: our value over that of the best other pair of cut and training."""
    own = results[OURS, OURS]
    others = {f"{cut} + {way}": runs for (cut, way), runs in results.items() if (cut, way) != (OURS, OURS)}
    steps = {" + ".join(arm): round(np.mean([run["steps"] for run in runs])) for arm, runs in results.items()}
    shown = "; ".join(
        f"{cut} before training {math.exp(facts['ppl.mean_nll']):.2f} and {math.exp(facts['other.mean_nll']):.2f}"
        for cut, facts in before.items()
    )
    setting = (
        f"SmolLM2-135M, {CUTS[part]}; {minutes:g} processor minutes on {len(recovery.lessons.train)} x {LENGTH} "
        f"tokens of WikiText-2 valid, {torch.get_num_threads()} threads, {len(own)} seeds, mean steps {steps}; "
        f"{TEST} x {LENGTH} tokens of WikiText-2 test and of Python's language reference, perplexity of {shown}; "
        f"fine-tuning at the best of the rates {GRID} after {TRIAL_MINUTES} minutes; interval over seeds and blocks "
        "(paired bootstrap of both)"
    )
    measures = {"ppl": ("ppl.nll", np.exp), "other": ("other.nll", np.exp), "kl": ("other.kl", np.asarray)}
    rows = []
    for name, (field, scale) in measures.items():

        def value(runs: list[dict[str, Any]], blocks: Any = slice(None), field=field, scale=scale) -> float:
            return float(np.mean([scale(np.mean(np.array(run[field])[blocks])) for run in runs]))

        best = min(others, key=lambda each: value(others[each]))
        draw = np.random.default_rng(0)

        def ratio(blocks: Any, value=value, best=best, draw=draw) -> float:
            seeds = draw.integers(0, len(own), len(own))
            return value([own[i] for i in seeds], blocks) / value([others[best][i] for i in seeds], blocks)

        rows.append(
            row(
                f"recovery.1.{part}.{name}",
                value(own) / value(others[best]),
                GOALS[name],
                "lower",
                f"of that of {best}: {UNITS[name]}",
                setting,
                peers={"hf_pe + hf_pe": value(own)} | {each: value(runs) for each, runs in others.items()},
                interval=bootstrap(ratio, TEST),
            )
        )
    return rows


if __name__ == "__main__":
    main()
