"""Measure the seconds and peak resident bytes of `hf-pe inspect` on the config of a 7B Llama."""

import resource
import subprocess
import sys
import tempfile
import time

from common import row, write
from transformers import AutoConfig


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        AutoConfig.for_model("llama", architectures=["LlamaForCausalLM"]).save_pretrained(folder)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "hf_pe.cli", "inspect", folder], check=True)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    setting = "LlamaForCausalLM, 6.74B parameters, config.json alone; Python start and imports included"
    write(
        "ground_inspect",
        [
            row("ground.inspect.time", seconds, 20, "lower", "s", setting),
            row(
                "ground.inspect.memory",
                peak / 1e9,
                2,
                "lower",
                "GB",
                setting + "; peak resident, mapped libraries included",
            ),
        ],
    )


if __name__ == "__main__":
    main()
