"""Identify stages by what they are made from: a chain of hashes over original model, data and every recipe so far.

A stage of an earlier run is used again only where it has the hash that this run computes for it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from transformers import PreTrainedModel

from hf_pe.checkpoints.sentence_modules import SentenceModules
from hf_pe.checkpoints.source import ADAPTER, PICKLES, TRAINING_PICKLES, Source, resolve
from hf_pe.data import Examples
from hf_pe.files.hashes import cached_sha256, processor_sha256, sha256_of, tensors_sha256
from hf_pe.measure import Evaluate
from hf_pe.recipe import Recipe
from hf_pe.run import provenance
from hf_pe.tasks import Task

DECIDING = (".json", ".safetensors", ".model", ".txt", ".tiktoken")
"""Suffixes of the files in a model's folder that decide its outputs: weights, configs, vocabularies."""
METADATA_FILES = ("report.json", "plan.json", "stage.json", "trainer_state.json", "LICENSE.txt")
"""Files with such a suffix that do not change the model's outputs."""
VERSIONS = ("hf-pe", "transformers", "torch")


@dataclass(frozen=True)
class StageId:
    """Identify a stage by its name and by what it is made from.

    Attributes:
        name: Printed name, such as "2-distil" or "variant-nf4".
        identity: SHA-256 over everything that it is made from.
    """

    name: str
    identity: str

    @property
    def folder_name(self) -> str:
        """The name of the stage's folder; it differs where the stage is made from something else."""
        return f"{self.name}-{self.identity[:8]}"


def origin_of(
    source: Source,
    live: PreTrainedModel | None,
    processor: Any,
    task: Task,
    examples: Examples,
    evaluate: Evaluate | None,
    seed: int,
) -> dict[str, str]:
    """Return hashes, or short texts, of everything that all stages of a run are made from.

    Args:
        source: Source of the model.
        live: The model, where the user has loaded it already.
        processor: Tokenizer or processor of the run.
        task: Task of the run.
        examples: Rows of the run.
        evaluate: The user's own function; its code cannot be hashed, so its name identifies it.
        seed: Seed of the run.

    Returns:
        Values by the words in which a message names a difference, such as "another seed".
    """
    settings = examples.config.model_dump(mode="json", exclude={"train", "eval", "general", "general_limit"})
    return {
        "another model (its weights or its config)": live_sha256(live) if live else sha256_of(model_files(source)),
        "another dtype of its weights": source.dtype or "as stored",
        "another tokenizer or processor": processor_sha256(processor),
        "other data": examples.fingerprint,
        "other settings of the data": sha256_of(settings),
        "another task": sha256_of([_name_of(type(task)), _plain_values(task)]),
        "another evaluate function": "none" if evaluate is None else _name_of(evaluate),
        "another seed": str(seed),
        "other versions of hf_pe, transformers or torch": _versions(),
    }


def stage_ids(
    origin: Mapping[str, str] | None, recipes: Sequence[Recipe], variants: Mapping[str, Recipe]
) -> tuple[list[StageId], dict[str, StageId]]:
    """Return the stages of a run in order, and its variants by name, each of which follows the last stage.

    Args:
        origin: See `origin_of`; None where no stage is kept: then nothing is hashed and the identities are empty.
        recipes: Recipes of the run.
        variants: Recipes of the variants, by name.
    """
    identity, chain = "" if origin is None else sha256_of(dict(origin)), []
    for number, recipe in enumerate(recipes, 1):
        identity = _next(identity, recipe)
        chain.append(StageId(f"{number}-{recipe.recipe}", identity))
    return chain, {name: StageId(f"variant-{name}", _next(identity, recipe)) for name, recipe in variants.items()}


def model_files(source: Source) -> list[Any]:
    """Return what identifies a model: hashes by file name for a folder, id and commit for a model on the Hub."""
    files = _files(source.path, gguf_file=source.gguf_file, own_code=source.trust_remote_code)
    return [files] if source.adapter is None else [files, _files(source.adapter)]


def live_sha256(model: PreTrainedModel) -> str:
    """Return a hash over the class, config and tensors of a loaded model."""
    config = {
        key: value
        for key, value in model.config.to_dict().items()
        if key not in ("_name_or_path", "transformers_version")
    }
    tensors = tensors_sha256(model.state_dict().items())
    return sha256_of([_name_of(type(model)), json.dumps(config, default=str), tensors])


def _next(identity: str, recipe: Recipe) -> str:
    """Return the identity of the stage after the one with `identity` (a stage or the original); "" after ""."""
    return identity and sha256_of([identity, recipe.recipe, recipe.model_dump(mode="json"), _models_read_by(recipe)])


def _models_read_by(recipe: Recipe) -> list[Any]:
    """Return what identifies the models that a recipe reads besides the one that it changes."""
    return [
        _files(model.name) if model.is_adapter else model_files(resolve(model.name)) for model in recipe.models_read()
    ]


def _files(name: str, *, gguf_file: str | None = None, own_code: bool = False) -> Any:
    folder = Path(name).expanduser()
    if gguf_file is not None:
        return {gguf_file: cached_sha256(folder / gguf_file)}
    if not folder.is_dir():
        return [name, _commit(name)]
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    endings = (*DECIDING, ".py") if own_code else DECIDING
    if not any(path.suffix == ".safetensors" for path in files):
        endings = (*endings, *PICKLES)
    decide = [path for path in files if path.suffix in endings and path.name not in METADATA_FILES]
    return {path.name: cached_sha256(path) for path in decide if not path.name.startswith(TRAINING_PICKLES)}


def _commit(repo: str) -> str | None:
    """Return the commit of a Hub id that is loaded: the newest, or offline the cached one; None where unknown."""
    for name in ("config.json", ADAPTER):
        try:
            return Path(hf_hub_download(repo, name)).parent.name
        except (OSError, ValueError):  # loading the model will fail for the same reason and say so
            continue
    return None


def _versions() -> str:
    installed = provenance.versions()
    return ", ".join(f"{name} {installed[name]}" for name in VERSIONS)


def _name_of(value: Any) -> str:
    """Return the full name of a class or function, or of the class of another object."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _plain_values(task: Task) -> dict[str, Any]:
    """Return the settings of a task that are plain JSON values, and the hash of its sentence modules."""
    values = {name: value.sha256 if isinstance(value, SentenceModules) else value for name, value in vars(task).items()}
    return {name: value for name, value in values.items() if isinstance(value, (str, int, float, bool, type(None)))}
