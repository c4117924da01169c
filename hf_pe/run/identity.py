"""What stages are made from: a chain of hashes over the original model, the data and every recipe so far.

A stage of an earlier run is used again only where its hash is the one that this run would give it.
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
from hf_pe.files.hashes import processor_sha256, remembered_sha256, sha256_of, tensors_sha256
from hf_pe.measure import Evaluate
from hf_pe.recipe import Recipe
from hf_pe.run import provenance
from hf_pe.tasks import Task

DECIDING = (".json", ".safetensors", ".model", ".txt", ".tiktoken")
"""Endings of the files in a model's folder that decide what it computes: weights, configs, vocabularies."""
METADATA_FILES = ("report.json", "plan.json", "stage.json", "trainer_state.json", "LICENSE.txt")
"""Those of them that tell of the model only."""
VERSIONS = ("hf-pe", "transformers", "torch")


@dataclass(frozen=True)
class StageId:
    """Which stage it is, and from what it is made.

    Attributes:
        name: as it is printed, such as "2-distil" or "variant-nf4".
        identity: SHA-256 over everything that it is made from.
    """

    name: str
    identity: str

    @property
    def folder_name(self) -> str:
        """Name of its folder: a stage that is made from something else has another one."""
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
    """Return what all stages of a run are made from, by the words that name it: hashes, or short texts.

    Args:
        source: where the model comes from.
        live: the model itself where it was loaded already.
        processor, task, examples, seed: of the run.
        evaluate: the user's own function; its code cannot be hashed, so its name stands for it.
    """
    settings = examples.config.model_dump(mode="json", exclude={"train", "eval"})
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
    """Return the chain of stages, and the variants, each of which hangs on the last of them.

    Args:
        origin: of the run; None where no stage is kept: then nothing is hashed and the identities are empty.
        recipes, variants: of the run.
    """
    identity, chain = "" if origin is None else sha256_of(dict(origin)), []
    for number, step in enumerate(recipes, 1):
        identity = _next(identity, step)
        chain.append(StageId(f"{number}-{step.recipe}", identity))
    return chain, {name: StageId(f"variant-{name}", _next(identity, step)) for name, step in variants.items()}


def model_files(source: Source) -> list[Any]:
    """Return what decides a model on disk or on the Hub: hashes by file name, or the id and the commit."""
    own = _files(source.path, gguf_file=source.gguf_file, own_code=source.trust_remote_code)
    return [own] if source.adapter is None else [own, _files(source.adapter)]


def live_sha256(model: PreTrainedModel) -> str:
    """Return a hash of a loaded model: its class, its config and its tensors."""
    config = model.config.to_dict()
    told = {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}
    return sha256_of([_name_of(type(model)), json.dumps(told, default=str), tensors_sha256(model.state_dict().items())])


def _next(identity: str, step: Recipe) -> str:
    """Return the identity of a stage that follows on another one, or on the original; "" where that has none."""
    return identity and sha256_of([identity, step.recipe, step.model_dump(mode="json"), _models_read_by(step)])


def _models_read_by(step: Recipe) -> list[Any]:
    """Return what decides the models that a recipe reads beside the one that it changes."""
    return [_files(each.name) if each.is_adapter else model_files(resolve(each.name)) for each in step.models_read()]


def _files(name: str, *, gguf_file: str | None = None, own_code: bool = False) -> Any:
    folder = Path(name).expanduser()
    if gguf_file is not None:
        return {gguf_file: remembered_sha256(folder / gguf_file)}
    if not folder.is_dir():
        return [name, _commit(name)]
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    endings = (*DECIDING, ".py") if own_code else DECIDING
    if not any(path.suffix == ".safetensors" for path in files):
        endings = (*endings, *PICKLES)
    decide = [path for path in files if path.suffix in endings and path.name not in METADATA_FILES]
    return {path.name: remembered_sha256(path) for path in decide if not path.name.startswith(TRAINING_PICKLES)}


def _commit(repo: str) -> str | None:
    """Return the commit of a Hub id that is used: the newest, or offline the one in the cache; None where unknown."""
    for name in ("config.json", ADAPTER):
        try:
            return Path(hf_hub_download(repo, name)).parent.name
        except (OSError, ValueError):  # what loads the model will say why
            continue
    return None


def _versions() -> str:
    installed = provenance.versions()
    return ", ".join(f"{name} {installed[name]}" for name in VERSIONS)


def _name_of(thing: Any) -> str:
    """Return the full name of a class or function; of another object that of its class."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


def _plain_values(task: Task) -> dict[str, Any]:
    """Return the settings of a task that JSON can say."""
    told = {name: value.sha256 if isinstance(value, SentenceModules) else value for name, value in vars(task).items()}
    return {name: value for name, value in told.items() if isinstance(value, (str, int, float, bool, type(None)))}
