"""Everything local that a run reads: no output may be, hold or lie inside it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hf_pe.backbones import BackboneSwap
from hf_pe.checkpoints.source import Source
from hf_pe.data import DataConfig
from hf_pe.distill import Distillation


def local_inputs(source: Source, recipes: Sequence[Any], data: Any, processor: Any = None) -> dict[str, Path]:
    """Return the local paths of the model, the data, teachers, backbones and caches, by what they are.

    Args:
        source: the model.
        recipes: of the run.
        data: as `compress` takes it; only names of files are of interest.
        processor: of the run; only a name is of interest.
    """
    read = source.inputs()
    if isinstance(processor, (str, Path)):
        read |= _existing("the processor", str(processor))
    if isinstance(data, (str, DataConfig)):
        config = data if isinstance(data, DataConfig) else DataConfig(train=data)
        read |= _existing("data.train", config.train) | _existing("data.eval", config.eval)
    for step in recipes:
        if isinstance(step, BackboneSwap):
            read |= _existing("the backbone", step.reads_weights_of)
        if isinstance(step, Distillation):
            for teacher in step.teachers:
                read |= _existing("the teacher", teacher.model) | _existing("the adapter", teacher.adapter)
            if step.cache:
                read["distil.cache"] = Path(step.cache.folder)  # to be, where it is not there yet
    return read


def _existing(what: str, names: str | Iterable[str] | None) -> dict[str, Path]:
    """Return those of `names` that are local paths."""
    listed = [names] if isinstance(names, str) else list(names or ())
    return {f"{what} {Path(name).name}": path for name in listed if (path := Path(name).expanduser()).exists()}
