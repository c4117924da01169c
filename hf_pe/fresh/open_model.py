"""Load a folder as any user would; `checkpoints.reload.open_in_fresh_process` runs this file as a program of its own.

It must not import hf_pe, since it checks that the folder loads without it; only for a model with custom modules the
order asks for `hf_pe.plugin`. It executes no code from the order, which names auto classes of transformers that
`loading.Loading` has checked. Peak memory is counted from after the imports: the largest anonymous resident memory,
sampled, plus the resident pages of weight files that the model still maps after the forward pass.
"""

import contextlib
import hashlib
import importlib
import json
import operator
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import transformers.modeling_utils  # imported first, so that it does not count as memory of the model
from safetensors.torch import load_file, save_file

WEIGHTS = (".safetensors", ".gguf", ".bin")


def _anonymous() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)


def _mapped_weights() -> int:
    """Return the resident bytes of memory-mapped weight files, at most the size of each file."""
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return 0
    resident: dict[str, int] = {}
    path = ""
    for line in lines:
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):  # a mapping begins: address, mode, offset, device, inode, path
            path = line.split(maxsplit=5)[5] if line.count("/") else ""
        elif line.startswith("Rss:") and path.endswith(WEIGHTS):
            resident[path] = resident.get(path, 0) + int(line.split()[1]) * 1024
    return sum(min(size, Path(path).stat().st_size) for path, size in resident.items())


def _hashes(model: torch.nn.Module) -> dict[str, str]:
    """Return the SHA-256 of dtype, shape and values of each tensor that the model saves."""
    hashes = {}
    for name, tensor in model.state_dict().items():
        digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        hashes[name] = digest.hexdigest()
    return hashes


def _watch(peak: list[int], stop: threading.Event) -> None:
    while not stop.is_set():
        peak[0] = max(peak[0], _anonymous())
        time.sleep(0.002)


def main(work: Path) -> None:
    """Load the folder that the order names, run one forward pass, and write down the measurements."""
    order = json.loads((work / "order.json").read_text("utf-8"))
    transformers.logging.disable_progress_bar()
    inputs = load_file(work / "inputs.safetensors")
    floor, peak, stop = _anonymous(), [0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(peak, stop))
    watcher.start()
    try:
        if order["plugin"]:
            importlib.import_module("hf_pe.plugin")
        model = _loaded(order["auto_class"], order).eval()
        if order["processor_class"]:
            _loaded(order["processor_class"], order)
        if order["device"] not in ("", str(model.device)):
            model.to(order["device"])
        with torch.no_grad():
            outputs = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
        mapped = _mapped_weights()
    finally:
        stop.set()
        watcher.join()
    assert order["plugin"] or "hf_pe" not in sys.modules, "loading the folder imported hf_pe"
    tensors = [v for v in outputs.values() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    save_file({str(i): t.contiguous().clone().cpu() for i, t in enumerate(tensors)}, work / "outputs.safetensors")
    measured = {
        "parameters": sum(_count(p, order["shape_attributes"]) for p in model.parameters()),
        "peak_memory_bytes": max(peak[0] - floor, 0) + mapped if floor else None,
        "hashes": _hashes(model),
    }
    (work / "measured.json").write_text(json.dumps(measured), "utf-8")


def _loaded(auto_class: str, order: dict[str, Any]) -> Any:
    """Load the folder by an auto class; custom code runs only where the order allows it."""
    loader = getattr(transformers, auto_class)
    return loader.from_pretrained(order["folder"], trust_remote_code=order["trust_remote_code"])


def _count(parameter: torch.nn.Parameter, shape_attributes: list[str]) -> int:
    """Return how many weights a possibly quantized parameter stands for; see `Quantizer.shape_attribute`."""
    for path in shape_attributes:
        with contextlib.suppress(AttributeError):
            return int(torch.Size(operator.attrgetter(path)(parameter)).numel())
    return parameter.numel()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
