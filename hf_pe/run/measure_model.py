"""Measure one model as it is, also by saving it and loading the folder in a fresh process."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_pe import progress
from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.processor import load_processor, pixels_from
from hf_pe.checkpoints.save import save_model, weight_bytes_on_disk
from hf_pe.checkpoints.source import Source
from hf_pe.data import DataConfig, load_for_evaluation
from hf_pe.measure import (
    chance_warnings,
    first_outputs,
    measure,
    reopened,
)
from hf_pe.report import Measurement
from hf_pe.tasks import prepare
from hf_pe.tasks.infer import find_task, task_of_class


def measure_source(source: Source, task: str | None, data: DataConfig | None) -> Measurement:
    """Measure one model as it is: sizes, FLOPs, latency, peak memory and, with `data`, quality.

    Raises:
        UsageError: The model or the data cannot be loaded, or the task does not fit the model.
    """
    config = load_config(source)
    if task is None and data is None:
        model_class, ready = class_for(config), None
        kind = task_of_class(config, model_class)
        auto_class = kind.auto_class if kind else "AutoModel"
    else:
        the_task = find_task(task, source, config)
        auto_class, model_class = the_task.auto_class, class_for(config, the_task.auto_class)
        processor = load_processor(source, the_task.processor_class) if data else None
        ready = prepare(the_task, load_for_evaluation(data), processor, config) if data else None
    progress.say("loading the model")
    model = load_model(source, model_class)
    pixels = pixels_from(source, model_class)
    if ready is not None:
        first_outputs(model, ready)
    measured = measure({"model": model}, ready, pixels=pixels)["model"]
    if ready is not None:
        for warning in (*ready.examples.warnings, *ready.warnings, *chance_warnings(model, measured.quality, ready)):
            progress.warn(warning)
    with tempfile.TemporaryDirectory() as folder:
        return with_folder_facts(measured, model, None, Path(folder), auto_class, source, pixels)


def with_folder_facts(
    measured: Measurement,
    model: PreTrainedModel,
    processor: Any,
    work: Path,
    auto_class: str,
    source: Source,
    pixels: Any = None,
) -> Measurement:
    """Save the model into a folder inside `work`, and add its bytes on disk and the peak memory of a fresh process.

    For a model from a .gguf file the bytes on disk are those of that file.
    """
    folder = work / "base"
    shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed
    save_model(model, processor, folder)
    reloaded, _ = reopened(folder, model, auto_class, processor, pixels=pixels)
    disk_bytes = weight_bytes_on_disk(folder) if source.gguf is None else source.gguf.stat().st_size
    shutil.rmtree(folder)
    return measured.model_copy(update={"disk_bytes": disk_bytes, "peak_memory_bytes": reloaded.peak_memory_bytes})
