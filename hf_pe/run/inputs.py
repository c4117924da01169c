"""List all local paths that a run reads, so that no output is written over, into or around one of them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hf_pe.checkpoints.source import Source
from hf_pe.data import DataConfig
from hf_pe.recipe import Recipe


def local_inputs(source: Source, recipes: Sequence[Recipe], data: Any, processor: Any = None) -> dict[str, Path]:
    """Return the local paths of the model, the data, teachers, backbones and caches, by a description of each.

    Args:
        source: Source of the model.
        recipes: Recipes of the run.
        data: Data as `compress` takes them; only names of files matter here.
        processor: Processor of the run; only a name matters here.
    """
    paths = source.inputs()
    if isinstance(processor, (str, Path)):
        paths |= _existing("the processor", str(processor))
    if isinstance(data, (str, DataConfig)):
        config = data if isinstance(data, DataConfig) else DataConfig(train=data)
        for name in ("train", "eval", "general"):
            paths |= _existing(f"data.{name}", getattr(config, name))
    for recipe in recipes:
        for model in recipe.models_read():
            paths |= _existing(model.what, model.name)
        paths |= recipe.folders_used()
    return paths


def _existing(what: str, names: str | Iterable[str] | None) -> dict[str, Path]:
    """Return those of `names` that are existing local paths."""
    listed = [names] if isinstance(names, str) else list(names or ())
    return {f"{what} {Path(name).name}": path for name in listed if (path := Path(name).expanduser()).exists()}
