"""Write the arguments of a run as the content of a recipe file."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_pe.checkpoints.source import Source
from hf_pe.data import DataConfig
from hf_pe.recipe import Recipe
from hf_pe.run import provenance
from hf_pe.tasks import Task


def recipe_of(  # noqa: PLR0913  each argument is named by its caller
    source: Source,
    task: Task,
    data: DataConfig,
    recipes: Sequence[Recipe],
    variants: Mapping[str, Recipe],
    base_model: str | None,
    license: str | None,
    seed: int,
    processor: str | None = None,
) -> dict[str, Any]:
    """Return a run as the content of a recipe file, without the paths of local folders."""
    data_settings = data.model_dump(mode="json", exclude_defaults=True)
    for key in data_settings.keys() & {"train", "eval", "general"}:
        names = provenance.public_names(getattr(data, key))
        data_settings[key] = names[0] if len(names) == 1 else list(names)
    content = {
        "format_version": 1,
        "model": source.spec or source.name,
        "processor": processor and provenance.public_names(processor)[0],
        "base_model": base_model,
        "license": license,
        "task": task.name,
        "dtype": source.dtype,
        "data": data_settings,
        "recipes": [r.model_dump(mode="json", exclude_unset=True) | {"recipe": r.recipe} for r in recipes],
        "variants": {
            n: v.model_dump(mode="json", exclude_unset=True) | {"recipe": v.recipe} for n, v in variants.items()
        },
        "seed": seed,
    }
    return {key: value for key, value in content.items() if value not in (None, {})}
