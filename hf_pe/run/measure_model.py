"""Measures one model as it is, and what only a saved folder shows."""

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
        UsageError: the model, the task or the data cannot be had.
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
    found = measure({"model": model}, ready, pixels=pixels)["model"]
    if ready is not None:
        for warning in (*ready.examples.warnings, *ready.warnings, *chance_warnings(model, found.quality, ready)):
            progress.warn(warning)
    with tempfile.TemporaryDirectory() as folder:
        return with_folder_facts(found, model, None, Path(folder), auto_class, source, pixels)


def with_folder_facts(
    measured: Measurement,
    model: PreTrainedModel,
    processor: Any,
    place: Path,
    auto_class: str,
    source: Source,
    pixels: Any = None,
) -> Measurement:
    """Add what only a saved folder tells: bytes on disk and peak memory of a fresh process; saved in `place` for it.

    A model that came from a .gguf file has the bytes of that file.
    """
    folder = place / "base"
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed meanwhile
    save_model(model, processor, folder)
    seen, _ = reopened(folder, model, auto_class, processor, pixels=pixels)
    size = weight_bytes_on_disk(folder) if source.gguf is None else source.gguf.stat().st_size
    shutil.rmtree(folder)
    return measured.model_copy(update={"disk_bytes": size, "peak_memory_bytes": seen.peak_memory_bytes})
