"""Everything local that a run reads: no output may be, hold or lie inside it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hf_pe.checkpoints.source import Source
from hf_pe.data import DataConfig
from hf_pe.recipe import Recipe


def local_inputs(source: Source, recipes: Sequence[Recipe], data: Any, processor: Any = None) -> dict[str, Path]:
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
        for model in step.models_read():
            read |= _existing(model.what, model.name)
        read |= step.folders_used()
    return read


def _existing(what: str, names: str | Iterable[str] | None) -> dict[str, Path]:
    """Return those of `names` that are local paths."""
    listed = [names] if isinstance(names, str) else list(names or ())
    return {f"{what} {Path(name).name}": path for name in listed if (path := Path(name).expanduser()).exists()}
