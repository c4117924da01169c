"""Measure the peak memory of quantizing a sharded checkpoint, and the time to load it beside transformers alone.

The script writes the checkpoint itself: 1.5 billion parameters, Llama-shaped, random, bfloat16, four shards. It is
quantized to NF4, and the peak memory is divided by the bytes of its weights. Each part runs in a process of its own;
the loads of hf_pe and of transformers alternate.
"""

import statistics
import tempfile
from pathlib import Path

from common import row, write
from reach_stream import DONE, MAKE, WATCH, ran

ROUNDS = 7
PACK = (
    """
import sys, torch, transformers, bitsandbytes
from hf_pe import quantize_checkpoint
"""
    + WATCH
    + """
quantize_checkpoint(sys.argv[1], sys.argv[2])
extra_values = {}
"""
    + DONE
)
OURS = (
    """
import sys, torch, transformers, bitsandbytes
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.source import resolve
"""
    + WATCH
    + """
source = resolve(sys.argv[1])
load_model(source, class_for(load_config(source)))
extra_values = {}
"""
    + DONE
)
BARE = (
    """
import sys, torch, transformers, bitsandbytes
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.source import resolve
"""
    + WATCH
    + """
AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto").eval()
extra_values = {}
"""
    + DONE
)
WHILE_LOADED = (
    """
import sys, torch, transformers, bitsandbytes
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
"""
    + WATCH
    + """
nf4 = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
)
AutoModelForCausalLM.from_pretrained(sys.argv[1], quantization_config=nf4, dtype="auto").save_pretrained(sys.argv[2])
extra_values = {}
"""
    + DONE
)


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        large, small, bare = (str(Path(work, name)) for name in ("large", "small", "bare"))
        ran(MAKE, large)
        before = sum(p.stat().st_size for p in Path(large).glob("*.safetensors"))
        packing = {"ours": ran(PACK, large, small), "bare": ran(WHILE_LOADED, large, bare)}
        after = sum(p.stat().st_size for p in Path(small).glob("*.safetensors"))
        loading: dict[str, list[float]] = {"ours": [], "bare": []}
        for number in range(ROUNDS):
            pair = [("ours", OURS), ("bare", BARE)]
            for name, program in pair if number % 2 else reversed(pair):
                loading[name].append(ran(program, small)["seconds"])
    seconds = {name: statistics.median(times) for name, times in loading.items()}
    shape = f"Llama-shaped, {before / 1e9:.2f} GB of bfloat16 in shards"
    write(
        "quantize_load",
        [
            row(
                "quantize.3.memory",
                packing["ours"]["peak"] / before,
                0.6,
                "lower",
                "peak anonymous memory over the bytes of the weights",
                f"{shape}, packed to NF4 ({after / before:.0%} of the bytes) and saved in "
                f"{packing['ours']['seconds']:.0f} s",
                peers={"from_pretrained(quantization_config=...) and save": packing["bare"]["peak"] / before},
            ),
            row(
                "quantize.3.load",
                seconds["ours"] / seconds["bare"],
                1.1,
                "lower",
                "times as long as bare from_pretrained",
                f"{shape}, packed to NF4; median of {ROUNDS} loads in turns, {seconds['ours']:.2f} s",
                peers={"bare from_pretrained, s": seconds["bare"]},
            ),
        ],
    )


if __name__ == "__main__":
    main()
