"""The reload check: a saved folder is loaded in a fresh process without hf_pe and compared."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from transformers import (
    FeatureExtractionMixin,
    ImageProcessingMixin,
    PreTrainedTokenizerBase,
)

from hf_pe.dummies.outputs import difference
from hf_pe.fresh.run import run_fresh
from hf_pe.loading import Loading, ProcessorClass
from hf_pe.plans import Frozen
from hf_pe.quantizers.registry import shape_attributes

NO_ACCELERATOR = {"CUDA_VISIBLE_DEVICES": "", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
"""Variables under which a process has the CPU alone: packed weights go to an accelerator by themselves, where there is
one, and not every one lets them go back."""


def loading_for(auto_class: str, processor: Any, *, plugin: bool = False, own_code: bool = False) -> Loading:
    """Return how a result is loaded; the card prints it as lines, the reload check calls the same classes.

    Args:
        auto_class: that makes the model.
        processor: its tokenizer or the like, or None.
        plugin: it has the plug-in form.
        own_code: it has code of its own, which has to be allowed.
    """
    kinds: dict[ProcessorClass, type] = {
        "AutoTokenizer": PreTrainedTokenizerBase,
        "AutoImageProcessor": ImageProcessingMixin,
        "AutoFeatureExtractor": FeatureExtractionMixin,
    }
    known = next((loader for loader, kind in kinds.items() if isinstance(processor, kind)), "AutoProcessor")
    loader: Any = None if processor is None else known
    return Loading(auto_class=auto_class, processor_class=loader, plugin=plugin, trust_remote_code=own_code)


class Seen(Frozen):
    """What a fresh process saw of a folder.

    Attributes:
        parameters: their number.
        peak_memory_bytes: of loading and one forward pass, above the imports; weights that stay mapped included.
        max_difference: largest relative difference of the outputs to those expected; None where none were.
        hashes: SHA-256 of each tensor that the model saves, by name.
    """

    parameters: int
    peak_memory_bytes: int | None
    max_difference: float | None
    hashes: dict[str, str] = Field(default_factory=dict, repr=False)


def open_in_fresh_process(
    folder: Path,
    loading: Loading,
    inputs: dict[str, torch.Tensor],
    expected: list[torch.Tensor] | None,
    device: torch.device | None = None,
) -> Seen:
    """Load `folder` in a process that imports hf_pe only for the plug-in form, and run one forward pass on `inputs`.

    Args:
        folder: what to load.
        loading: by which classes.
        inputs: keyword arguments of the model.
        expected: outputs to compare with, or None.
        device: where the loaded model runs: the same kernels give the same outputs; default: where it was loaded.

    Raises:
        RuntimeError: it does not load or run; carries the process's own last words.
    """
    with tempfile.TemporaryDirectory() as work:
        save_file({k: v.contiguous().cpu() for k, v in inputs.items()}, Path(work, "inputs.safetensors"))
        order = {**loading.model_dump(), "folder": str(folder.resolve()), "device": str(device or "")}
        order["shape_attributes"] = shape_attributes()
        Path(work, "order.json").write_text(json.dumps(order), "utf-8")
        on_cpu = device is not None and device.type == "cpu"
        hidden = NO_ACCELERATOR if on_cpu and torch.accelerator.is_available() else {}
        run_fresh("open_model.py", work, f"{folder.name} does not load in a fresh process", hidden)
        seen = json.loads(Path(work, "seen.json").read_text("utf-8"))
        outputs = load_file(Path(work, "outputs.safetensors"))
    found = [outputs[str(i)] for i in range(len(outputs))]
    gap = None if expected is None else difference([e.cpu() for e in expected], found)
    return Seen(**seen, max_difference=gap)
