"""Measure the memory and the time of quantized weights.

The script measures the resident memory of a fresh process after one forward pass, and the time of a forward pass at
batch 1 and 32, side by side in one run: all-MiniLM-L6-v2 and SmolLM2-135M in float32, bfloat16, int8, FP4, NF4, NF4
with double quantization, and mixed precision of 6 mean bits. Refitted weights have the same shapes and types as NF4
with double quantization, so they need the same memory and time. The script needs the extras gguf and demo and takes
about six minutes on two cores. With `--only` or `--model`, the rows that are not measured stay as they are.
"""

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import row, write
from quantize_quality import CASES, WAYS
from transformers import AutoModel, AutoModelForCausalLM

from hf_pe.checkpoints.save import save_model
from hf_pe.measure import latency, weight_bytes
from hf_pe.quantize import BitsAndBytesQuantization, Cast
from hf_pe.recipe import StageState

BATCHES = (1, 32)
SECONDS = 20.0
ROWS = 4
"""Number of calibration rows; a few suffice, since the choice of layers in the mix changes neither time nor memory."""
OF: dict[str, dict[str, Any]] = {
    "minilm": {"auto": AutoModel, "length": 128},
    "smollm2": {"auto": AutoModelForCausalLM, "length": 32},
}


RESIDENT = """
import gc, sys
from pathlib import Path
import torch, transformers
import bitsandbytes
def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
loader, floor = getattr(transformers, sys.argv[2]), resident()
model = loader.from_pretrained(sys.argv[1]).eval()
with torch.inference_mode():
    outputs = model(input_ids=torch.arange(int(sys.argv[3]))[None])
del outputs
gc.collect()
print(resident() - floor)
"""
"""Program that prints the resident memory gained since the imports; it includes the pages read of mapped files."""


def resident(model: Any, auto: str, length: int) -> float:
    """Return the MiB that a fresh process gains by loading the saved model and running it once."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, None, Path(folder))
        command = [sys.executable, "-c", RESIDENT, folder, auto, str(length)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / 2**20


def figures(name: str, part: str | None) -> list[dict[str, Any]]:
    """Measure one model and return its rows."""
    case, length = CASES[name](), OF[name]["length"]
    few = case.data.examples.config.model_copy(update={"calibration": ROWS})
    data = replace(case.data, examples=replace(case.data.examples, config=few))
    models: dict[str, Any] = {"float32": case.model}
    recipes: dict[str, Any] = {label: BitsAndBytesQuantization(dtype="bfloat16", **t) for label, t in WAYS.items() if t}
    recipes |= {
        "bfloat16": Cast(),
        "mix": BitsAndBytesQuantization(mean_bits=6.0, sensitivity="estimated", refit="none"),
    }
    for label, recipe in recipes.items():
        models[label] = recipe.carry_out(StageState(case.model, data)).model
    what, rows = f"{name}, {length} tokens, {torch.get_num_threads()} threads", []
    if part != "time":
        memory = {label: resident(model, OF[name]["auto"].__name__, length) for label, model in models.items()}
        rows = [row(
            f"quantize.4.{name}.memory", memory["NF4 double"] / memory["bfloat16"], 1.0, "lower",
            "of bfloat16's memory",
            f"{what}; resident memory of a fresh process after loading and one forward pass of batch 1, MiB above what "
            "imports take; bytes of the weights: "
            + ", ".join(f"{label} {weight_bytes(model):,}" for label, model in models.items()),
            peers=memory,
        )]  # fmt: skip
    for batch in BATCHES if part != "memory" else ():
        latencies = latency(models, batch=batch, length=length, seconds=SECONDS)
        milliseconds = {label: timing.p50_ms for label, timing in latencies.items()}
        for label, id in (("NF4 double", "nf4"), ("int8", "int8")):
            rows.append(
                row(
                    f"quantize.4.{name}.{id}.batch{batch}", milliseconds[label] / milliseconds["bfloat16"], 1.0,
                    "lower", "of bfloat16's time", f"{what}, batch {batch}, median milliseconds of a forward pass",
                    peers=milliseconds,
                )
            )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=["memory", "time"])
    parser.add_argument("--model", choices=[*OF])
    arguments = parser.parse_args()
    names = [arguments.model] if arguments.model else OF
    write("quantize_speed", [figure for name in names for figure in figures(name, arguments.only)])


if __name__ == "__main__":
    main()
