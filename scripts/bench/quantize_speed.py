"""What packed weights take: memory of a fresh process, and the time of a forward pass at batch 1 and 32, side by side
in one run: all-MiniLM-L6-v2 and SmolLM2-135M in float32, bfloat16, int8, FP4, NF4, NF4 double and a mix of 6 mean bits.

Repaired weights are the same tensors with other codes: they take what NF4 double does. Needs the extras gguf and demo.
Takes about ten minutes on two cores.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from common import row, write
from quantize_quality import CASES, WAYS
from transformers import AutoModel, AutoModelForCausalLM

from hf_pe.checkpoints import save_model
from hf_pe.measure import latency, weight_bytes
from hf_pe.measure.memory import reopened
from hf_pe.quantize import BitsAndBytesQuantization, Cast

BATCHES = (1, 32)
SECONDS = 20.0
OF: dict[str, dict[str, Any]] = {
    "minilm": {"auto": AutoModel, "length": 128},
    "smollm2": {"auto": AutoModelForCausalLM, "length": 32},
}


def figures(name: str) -> list[dict[str, Any]]:
    """Rows of one model."""
    case, length = CASES[name](), OF[name]["length"]
    models: dict[str, Any] = {"float32": case.model}
    recipes: dict[str, Any] = {label: BitsAndBytesQuantization(dtype="bfloat16", **t) for label, t in WAYS.items() if t}
    recipes |= {
        "bfloat16": Cast(),
        "mix": BitsAndBytesQuantization(mean_bits=6.0, sensitivity="estimated", repair="none"),
    }
    for label, recipe in recipes.items():
        models[label] = recipe.apply(case.model, recipe.plan(case.model, case.data), case.data)
    memory: dict[str, float] = {}
    for label, model in models.items():
        with tempfile.TemporaryDirectory() as folder:
            save_model(model, None, Path(folder))
            seen, _ = reopened(Path(folder), folder, model, OF[name]["auto"].__name__, None, length=length)
        memory[label] = (seen.peak_memory_bytes or 0) / 2**20
    what = f"{name}, {length} tokens, {torch.get_num_threads()} threads"
    rows = [
        row(
            f"quantize.4.{name}.memory", memory["NF4 double"] / memory["bfloat16"], 1.0, "lower",
            "of bfloat16's memory",
            f"{what}; peak of loading and one forward pass of batch 1 in a fresh process, MiB; bytes of the weights: "
            + ", ".join(f"{label} {weight_bytes(model):,}" for label, model in models.items()),
            peers=memory,
        )
    ]  # fmt: skip
    for batch in BATCHES:
        found = latency(models, batch=batch, length=length, seconds=SECONDS)
        taken = {label: each.p50_ms for label, each in found.items()}
        for label, id in (("NF4 double", "nf4"), ("int8", "int8")):
            rows.append(
                row(
                    f"quantize.4.{name}.{id}.batch{batch}", taken[label] / taken["bfloat16"], 1.0, "lower",
                    "of bfloat16's time", f"{what}, batch {batch}, median milliseconds of a forward pass", peers=taken,
                )
            )  # fmt: skip
    return rows


def main() -> None:
    rows: list[dict[str, Any]] = []
    for name in OF:
        rows += figures(name)
        write("quantize_speed", rows)


if __name__ == "__main__":
    main()
