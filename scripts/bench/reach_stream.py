"""Measure the peak memory of cutting a sharded checkpoint on disk, and the time to plan for a 70B config.

The script writes the checkpoint itself: 1.5 billion parameters, Llama-shaped, random, bfloat16, four shards. The cut
removes 30 % of the parameters outside embeddings. Each part runs in a process of its own.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import row, write

WATCH = """
import threading, time
from pathlib import Path
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
floor, peak, stop = anonymous(), [0], threading.Event()
def watch():
    while not stop.is_set():
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.002)
threading.Thread(target=watch).start()
start = time.perf_counter()
"""
DONE = """
seconds = time.perf_counter() - start
stop.set()
import json
print(json.dumps({"seconds": seconds, "peak": peak[0] - floor, **extra_values}))
"""
MAKE = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.set_default_dtype(torch.bfloat16)
config = LlamaConfig(
    hidden_size=2048, intermediate_size=8192, num_hidden_layers=24, num_attention_heads=32, num_key_value_heads=8,
    vocab_size=32000, tie_word_embeddings=False,
)
LlamaForCausalLM(config).save_pretrained(sys.argv[1], max_shard_size="900MB")
"""
CUT = (
    """
import sys, torch, transformers
from hf_pe import cut_checkpoint
"""
    + WATCH
    + """
cut_checkpoint(sys.argv[1], sys.argv[2], {"ffn": 0.625, "kv_groups": 0.75})
extra_values = {}
"""
    + DONE
)
PLAN = (
    """
import torch, transformers
from transformers import LlamaConfig, LlamaForCausalLM
from hf_pe import StructuredPruning
from hf_pe.model_spec import ModelSpec
"""
    + WATCH
    + """
config = LlamaConfig(
    hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
    vocab_size=128256, dtype="bfloat16",
)
recipe = StructuredPruning(keep={"ffn": 0.5, "kv_groups": 0.5, "layers": 0.75, "hidden": 0.75})
plan = recipe.dry_run(ModelSpec(config, LlamaForCausalLM))[0]
extra_values = {"parameters": plan.parameters}
"""
    + DONE
)


def ran(program: str, *arguments: str) -> dict[str, float]:
    """Run a program and return the JSON object on its last line of output, or {} if it prints nothing."""
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    lines = done.stdout.strip().splitlines()
    return dict(json.loads(lines[-1])) if lines else {}


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        large, small = Path(work, "large"), Path(work, "small")
        ran(MAKE, str(large))
        before = sum(p.stat().st_size for p in large.glob("*.safetensors"))
        shards = len([*large.glob("*.safetensors")])
        cutting = ran(CUT, str(large), str(small))
        after = sum(p.stat().st_size for p in small.glob("*.safetensors"))
    planned = ran(PLAN)
    write(
        "reach_stream",
        [
            row(
                "reach.stream.memory",
                cutting["peak"] / before,
                0.6,
                "lower",
                "peak anonymous memory over the bytes of the weights",
                f"Llama-shaped, {before / 1e9:.2f} GB of bfloat16 in {shards} shards, FFN 8192 to 5120 and key-value "
                f"groups 8 to 6 on disk ({after / before:.0%} of the bytes left) in {cutting['seconds']:.0f} s",
            ),
            row(
                "reach.plan70b.seconds",
                planned["seconds"],
                60,
                "lower",
                "s for the plan of a 70B config",
                f"Llama-shaped, 80 layers of width 8192, four axes, proofs included; {planned['parameters']:,} "
                f"parameters are left; {planned['peak'] / 1e9:.2f} GB of memory (goal 4)",
            ),
        ],
    )


if __name__ == "__main__":
    main()
