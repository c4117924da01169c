"""Run by `checkpoints.open_in_fresh_process` as a program of its own: loads a folder as any user would.

It must not import hf_pe: that the folder needs none of it is what it proves, unless its form is the plug-in's and the
snippet says so. Memory counts from after the imports:
anonymous resident memory, sampled, files that are only mapped left out.
"""

import json
import sys
import threading
import time
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file


def _anonymous() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)


def _watch(peak: list[int], stop: threading.Event) -> None:
    while not stop.is_set():
        peak[0] = max(peak[0], _anonymous())
        time.sleep(0.002)


def main(work: Path) -> None:
    """Run the snippet, one forward pass, and write down what was seen."""
    transformers.logging.disable_progress_bar()
    inputs = load_file(work / "inputs.safetensors")
    floor, peak, stop = _anonymous(), [0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(peak, stop))
    watcher.start()
    try:
        names: dict[str, transformers.PreTrainedModel] = {}
        snippet = (work / "snippet.py").read_text("utf-8")
        exec(snippet, names)
        model = names["model"].eval()
        with torch.no_grad():
            found = model(**inputs)
    finally:
        stop.set()
        watcher.join()
    told = snippet.startswith("import hf_pe.plugin")
    assert told or "hf_pe" not in sys.modules, "the snippet imported hf_pe"
    tensors = [v for v in found.values() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    save_file({str(i): t.contiguous().clone() for i, t in enumerate(tensors)}, work / "outputs.safetensors")
    seen = {
        "parameters": sum(_count(p) for p in model.parameters()),
        "peak_memory_bytes": max(peak[0] - floor, 0) if floor else None,
    }
    (work / "seen.json").write_text(json.dumps(seen), "utf-8")


def _count(parameter: torch.nn.Parameter) -> int:
    """Parameters that a possibly packed 4-bit tensor stands for."""
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
