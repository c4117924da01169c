"""Load a saved folder in a fresh process without hf_pe and compare its outputs: the reload check."""

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
"""Environment variables that hide accelerators from a process: quantized weights move to an accelerator by themselves
while they are loaded, and not every quantizer can move them back to the CPU."""


def loading_for(auto_class: str, processor: Any, *, plugin: bool = False, own_code: bool = False) -> Loading:
    """Return how a result is loaded; the card prints it as code, and the reload check calls the same classes.

    Args:
        auto_class: Auto class that loads the model.
        processor: Its tokenizer or processor, or None.
        plugin: Whether it has custom modules, which load after `import hf_pe.plugin`.
        own_code: Whether it comes with custom code, which the user has to allow.
    """
    kinds: dict[ProcessorClass, type] = {
        "AutoTokenizer": PreTrainedTokenizerBase,
        "AutoImageProcessor": ImageProcessingMixin,
        "AutoFeatureExtractor": FeatureExtractionMixin,
    }
    matching = next((loader for loader, kind in kinds.items() if isinstance(processor, kind)), "AutoProcessor")
    loader: Any = None if processor is None else matching
    return Loading(auto_class=auto_class, processor_class=loader, plugin=plugin, trust_remote_code=own_code)


class ReloadedFolder(Frozen):
    """Hold what a fresh process measured after loading a folder.

    Attributes:
        parameters: Number of parameters.
        peak_memory_bytes: Peak memory of loading and one forward pass above the imports, memory-mapped weights
            included.
        max_difference: Largest relative difference between its outputs and the expected ones; None where no outputs
            were expected.
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
) -> ReloadedFolder:
    """Load `folder` in a process that imports hf_pe only for custom modules, and run one forward pass on `inputs`.

    Args:
        folder: Folder to load.
        loading: Classes that load it.
        inputs: Keyword arguments of the model.
        expected: Outputs to compare with, or None.
        device: Device of the forward pass, so that the same kernels give the same outputs; by default the device that
            the model is loaded on.

    Raises:
        RuntimeError: The folder does not load or run; the message has the last lines that the process printed.
    """
    with tempfile.TemporaryDirectory() as work:
        save_file({k: v.contiguous().cpu() for k, v in inputs.items()}, Path(work, "inputs.safetensors"))
        order = {**loading.model_dump(), "folder": str(folder.resolve()), "device": str(device or "")}
        order["shape_attributes"] = shape_attributes()
        Path(work, "order.json").write_text(json.dumps(order), "utf-8")
        on_cpu = device is not None and device.type == "cpu"
        hidden = NO_ACCELERATOR if on_cpu and torch.accelerator.is_available() else {}
        run_fresh("open_model.py", work, f"{folder.name} does not load in a fresh process", hidden)
        measured = json.loads(Path(work, "measured.json").read_text("utf-8"))
        by_index = load_file(Path(work, "outputs.safetensors"))
    outputs = [by_index[str(i)] for i in range(len(by_index))]
    max_difference = None if expected is None else difference([e.cpu() for e in expected], outputs)
    return ReloadedFolder(**measured, max_difference=max_difference)
