"""What sentence-transformers keeps beside a model: the modules behind it, and prompts.

`modules.json` names the modules and the folder of each: the model itself, pooling, dense layers, normalisation.
"""

import hashlib
import json
import pickle
import shutil
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from hf_pe.checkpoints.sentence_modules import MODES, Dense, Normalize, SentenceModules, other_width
from hf_pe.errors import UsageError
from hf_pe.files.json_files import AGAIN, kind_of, read_json, read_object
from hf_pe.files.own_files import TOKENIZER_FILES, own_file, require_own
from hf_pe.files.shards import open_shard

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
TOKENIZATION = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Settings of the module that holds the model, under its names of all versions; the first with content counts."""
WEIGHTS, PICKLE = "model.safetensors", "pytorch_model.bin"
MODULE_FILES = (*TOKENIZER_FILES, "config.json", "[a-z]*_config.json", WEIGHTS)
"""What the folder of a module may hold; anything else is not taken along."""
WIDTHS = ("word_embedding_dimension", "embedding_dimension")
"""Settings of pooling that state the model's hidden width."""


def is_sentence_folder(folder: Path | None) -> bool:
    """Return whether sentence-transformers has its files in `folder`."""
    return folder is not None and (folder / MODULES).is_file()


def read_modules(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of modules.json, none where there is no such file.

    Raises:
        UsageError: it cannot be read, or a module's folder lies outside of `folder`.
    """
    if not is_sentence_folder(folder):
        return []
    modules = read_json(folder / MODULES)
    try:
        entries = [{**module, "path": str(module["path"]), "type": str(module.get("type", ""))} for module in modules]
    except (AttributeError, TypeError, KeyError) as error:
        raise UsageError(f"{folder.name}/{MODULES} cannot be read: expected a list of modules with a path.") from error
    for entry in entries:
        if entry["path"] not in ("", "."):
            own_file(folder, entry["path"], MODULES)
    return entries


def module_folders(folder: Path) -> list[str]:
    """Return the folders of the modules behind the model; see `read_modules`."""
    return [entry["path"] for entry in read_modules(folder) if entry["path"] not in ("", ".")]


def read_sentence_modules(folder: Path, *, allow_pickle: bool = False) -> SentenceModules:
    """Read what sentence-transformers does behind the model in `folder`, and its default prompt.

    Raises:
        UsageError: it pools otherwise than by the mean or the first token, or has modules that are not known.
    """
    pooling = "mean"
    head: list[nn.Module] = []
    first, *others = read_modules(folder) or [{"type": "Transformer"}]
    if first["type"].rpartition(".")[2] != "Transformer":
        raise UsageError(f"{folder.name} begins with the module {first['type']}; expected Transformer, a text model.")
    for entry in others:
        kind, place = entry["type"].rpartition(".")[2], folder / entry["path"]
        if kind == "Pooling":
            pooling = _pooling(_settings(place), folder)
        elif kind == "Dense":
            head.append(_dense(place, allow_pickle=allow_pickle))
        elif kind == "Normalize":
            head.append(Normalize())
        elif kind != "Dropout":
            raise UsageError(
                f"{folder.name} has the module {kind or entry['path']} behind the model; expected Pooling, Dense and "
                "Normalize. Compress the model without it, as task causal_lm or masked_lm if it has such a head."
            )
    prompt, warnings = _prompt(folder)
    changes = any(isinstance(module, Dense) for module in head)
    tokenization = next(filter(None, (_json(folder / name) for name in TOKENIZATION)), {})
    return SentenceModules(
        pooling,
        nn.Sequential(*head) if changes else None,
        prompt,
        bool(tokenization.get("do_lower_case")),
        tokenization.get("max_seq_length"),
        warnings,
        _sha256(folder),
    )


def require_width(folder: Path, width: int | None) -> None:
    """Refuse a hidden width that the dense layer behind the model does not read.

    Raises:
        UsageError: there is a dense layer of another width.
    """
    places = [entry["path"] for entry in read_modules(folder) if entry["type"].rpartition(".")[2] == "Dense"]
    reads = _settings(folder / places[0]).get("in_features") if places else None
    if width is not None and reads not in (None, width):
        raise UsageError(other_width(f"The dense layer {places[0]} of {folder.name}", reads, width))


def copy_modules(folder: Path, fresh: Path, width: int | None) -> None:
    """Copy the folders of the modules in `folder` into `fresh`; pooling is given the hidden width that is left.

    Dense weights are written as safetensors. Folders that are empty (Normalize) are made, files that are there stay.

    Args:
        folder: of the original.
        fresh: of the result.
        width: hidden width of the result; None where its config has none.
    """
    for entry in read_modules(folder):
        if entry["path"] in ("", "."):
            continue
        place = fresh / entry["path"]
        place.mkdir(parents=True, exist_ok=True)
        for file in sorted((folder / entry["path"]).glob("*")):
            carried = any(fnmatchcase(file.name, pattern) for pattern in MODULE_FILES) and file.is_file()
            if carried and not (place / file.name).exists():
                shutil.copyfile(require_own(folder, file), place / file.name)
        pickled = folder / entry["path"] / PICKLE
        if pickled.is_file() and not (place / WEIGHTS).exists():
            save_file(_tensors_of_pickle(require_own(folder, pickled)), place / WEIGHTS)
        if entry["type"].endswith("Pooling"):
            _set_embedding_width(place / "config.json", width)


def _sha256(folder: Path) -> str:
    paths = [folder / name for name in (MODULES, PROMPTS, *TOKENIZATION)]
    paths += [path for name in module_folders(folder) for path in sorted((folder / name).glob("*"))]
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _set_embedding_width(settings: Path, width: int | None) -> None:
    known = _settings(settings.parent)
    stale = {key: width for key in WIDTHS if known.get(key, width) != width}
    if width is not None and stale:
        settings.write_text(json.dumps(known | stale, indent=2) + "\n", "utf-8")


def _settings(place: Path) -> dict[str, Any]:
    return _json(place / "config.json")


def _json(path: Path) -> dict[str, Any]:
    """Return the settings in a file; none where there is no such file."""
    return read_object(path) if path.is_file() else {}


def _pooling(settings: dict[str, Any], folder: Path) -> str:
    given: Any = settings.get("pooling_mode") or [mode for key, mode in MODES.items() if settings.get(key)]
    modes = list(given) or ["mean"] if isinstance(given, list) else [str(given)]
    if len(modes) > 1 or modes[0] not in ("mean", "cls"):
        raise UsageError(
            f"{folder.name} pools by {' and '.join(map(str, modes))}; expected mean or CLS pooling, one of them."
        )
    if settings.get("include_prompt") is False and _prompt(folder)[0]:
        raise UsageError(
            f"{folder.name} leaves its prompts out of pooling (include_prompt: false); expected that all tokens are "
            "pooled."
        )
    return str(modes[0])


def _dense(place: Path, *, allow_pickle: bool) -> Dense:
    settings, name = _settings(place), f"{place.parent.name}/{place.name}"
    if settings.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise UsageError(f"{name} reads {settings['module_input_name']}; expected dense layers behind pooling.")
    if (place / WEIGHTS).is_file():
        with open_shard(place / WEIGHTS) as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    elif (place / PICKLE).is_file() and allow_pickle:
        weights = _tensors_of_pickle(place / PICKLE)
    else:
        raise UsageError(
            f"{name} has no {WEIGHTS}. Convert its weights to safetensors, or allow pickled ones with "
            "allow_pickle: true (--allow-pickle) if you trust where they come from."
        )
    sizes = [settings.get(key) for key in ("out_features", "in_features")]
    if "linear.weight" not in weights or list(weights["linear.weight"].shape) != sizes:
        raise UsageError(
            f"{name} cannot be built: its weights have another size than config.json says ({sizes}). {AGAIN}"
        )
    try:
        return Dense(settings, {name: weight.float() for name, weight in weights.items()})
    except (KeyError, TypeError, RuntimeError) as error:
        raise UsageError(f"{name} cannot be built from its config.json and weights: {error}") from error


def _tensors_of_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a pickle, which may hold nothing else: no code of it runs.

    Raises:
        UsageError: it is no pickle of tensors.
    """
    try:
        found: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UsageError(
            f"{path.parent.name}/{path.name} is no pickle of tensors alone: it is damaged, or would run code. Convert "
            f"its weights to {WEIGHTS}."
        ) from error
    return found


def _prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    settings = _json(folder / PROMPTS)
    named = settings.get("prompts") or {}
    if not isinstance(named, dict):
        raise UsageError(f"{folder / PROMPTS}: expected prompts by name, got {kind_of(named)}. {AGAIN}")
    prompts = {str(name): str(text or "") for name, text in named.items()}
    return prompts, settings.get("default_prompt_name")


def _prompt(folder: Path) -> tuple[str, tuple[str, ...]]:
    """Return the default prompt, and a sentence where there are prompts and none is the default."""
    prompts, default = _prompts(folder)
    if default is not None and default not in prompts:
        raise UsageError(
            f"{folder.name}/{PROMPTS}: default_prompt_name is '{default}'; expected one of {_named(prompts)}."
        )
    if default is not None or not any(prompts.values()):
        return prompts.get(default or "", ""), ()
    return "", (
        f"The model has prompts ({_named(prompts)}) and no default one: texts are read as they are. Put the prompt "
        "before each text, or set default_prompt_name.",
    )


def _named(prompts: Iterable[str]) -> str:
    return ", ".join(prompts) or "none"
