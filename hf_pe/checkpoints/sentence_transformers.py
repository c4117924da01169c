"""Read and copy the files that sentence-transformers keeps beside a model: the modules after it, and prompts.

`modules.json` names the modules and the folder of each: the model itself, pooling, dense layers, normalization.
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
"""Files with settings of the module that holds the model, under its names in all versions; the first with content is
used."""
WEIGHTS, PICKLE = "model.safetensors", "pytorch_model.bin"
MODULE_FILES = (*TOKENIZER_FILES, "config.json", "[a-z]*_config.json", WEIGHTS)
"""Patterns of the files in a module's folder that are copied; no others are."""
WIDTHS = ("word_embedding_dimension", "embedding_dimension")
"""Settings of pooling that state the model's hidden width."""


def is_sentence_folder(folder: Path | None) -> bool:
    """Return whether sentence-transformers has its files in `folder`."""
    return folder is not None and (folder / MODULES).is_file()


def read_modules(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of modules.json; an empty list where there is no such file.

    Raises:
        UsageError: The file cannot be read, or a module's folder lies outside of `folder`.
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
    """Return the folders of the modules after the model; see `read_modules`."""
    return [entry["path"] for entry in read_modules(folder) if entry["path"] not in ("", ".")]


def read_sentence_modules(folder: Path, *, allow_pickle: bool = False) -> SentenceModules:
    """Read what sentence-transformers applies after the model in `folder`, and its default prompt.

    Raises:
        UsageError: The pooling is neither the mean nor the first token, or a module is not supported.
    """
    pooling = "mean"
    head: list[nn.Module] = []
    first, *later_modules = read_modules(folder) or [{"type": "Transformer"}]
    if first["type"].rpartition(".")[2] != "Transformer":
        raise UsageError(f"{folder.name} begins with the module {first['type']}; expected Transformer, a text model.")
    for entry in later_modules:
        kind, module_folder = entry["type"].rpartition(".")[2], folder / entry["path"]
        if kind == "Pooling":
            pooling = _pooling(_settings(module_folder), folder)
        elif kind == "Dense":
            head.append(_dense(module_folder, allow_pickle=allow_pickle))
        elif kind == "Normalize":
            head.append(Normalize())
        elif kind != "Dropout":
            raise UsageError(
                f"{folder.name} has the module {kind or entry['path']} after the model; expected Pooling, Dense and "
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
    """Refuse a hidden width that the dense layer after the model does not read.

    Raises:
        UsageError: There is a dense layer of another width.
    """
    dense = [entry["path"] for entry in read_modules(folder) if entry["type"].rpartition(".")[2] == "Dense"]
    reads = _settings(folder / dense[0]).get("in_features") if dense else None
    if width is not None and reads not in (None, width):
        raise UsageError(other_width(f"The dense layer {dense[0]} of {folder.name}", reads, width))


def copy_modules(folder: Path, fresh: Path, width: int | None) -> None:
    """Copy the folders of the modules in `folder` into `fresh`, and write the new hidden width into pooling's settings.

    Weights of dense layers are written as safetensors. Empty folders (Normalize) are created, existing files stay.

    Args:
        folder: Folder of the original.
        fresh: Folder of the result.
        width: Hidden width of the result; None where its config states none.
    """
    for entry in read_modules(folder):
        if entry["path"] in ("", "."):
            continue
        copy = fresh / entry["path"]
        copy.mkdir(parents=True, exist_ok=True)
        for file in sorted((folder / entry["path"]).glob("*")):
            carried = any(fnmatchcase(file.name, pattern) for pattern in MODULE_FILES) and file.is_file()
            if carried and not (copy / file.name).exists():
                shutil.copyfile(require_own(folder, file), copy / file.name)
        pickled = folder / entry["path"] / PICKLE
        if pickled.is_file() and not (copy / WEIGHTS).exists():
            save_file(_tensors_of_pickle(require_own(folder, pickled)), copy / WEIGHTS)
        if entry["type"].endswith("Pooling"):
            _set_embedding_width(copy / "config.json", width)


def _sha256(folder: Path) -> str:
    paths = [folder / name for name in (MODULES, PROMPTS, *TOKENIZATION)]
    paths += [path for name in module_folders(folder) for path in sorted((folder / name).glob("*"))]
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _set_embedding_width(file: Path, width: int | None) -> None:
    settings = _settings(file.parent)
    corrected = {key: width for key in WIDTHS if settings.get(key, width) != width}
    if width is not None and corrected:
        file.write_text(json.dumps(settings | corrected, indent=2) + "\n", "utf-8")


def _settings(module_folder: Path) -> dict[str, Any]:
    return _json(module_folder / "config.json")


def _json(path: Path) -> dict[str, Any]:
    """Return the settings in a file; an empty dict where there is no such file."""
    return read_object(path) if path.is_file() else {}


def _pooling(settings: dict[str, Any], folder: Path) -> str:
    setting: Any = settings.get("pooling_mode") or [mode for key, mode in MODES.items() if settings.get(key)]
    modes = list(setting) or ["mean"] if isinstance(setting, list) else [str(setting)]
    if len(modes) > 1 or modes[0] not in ("mean", "cls"):
        raise UsageError(
            f"{folder.name} pools by {' and '.join(map(str, modes))}; expected mean or CLS pooling, one of them."
        )
    if settings.get("include_prompt") is False and _prompt(folder)[0]:
        raise UsageError(
            f"{folder.name} leaves its prompts out of pooling (include_prompt: false); expected pooling over all "
            "tokens."
        )
    return str(modes[0])


def _dense(module_folder: Path, *, allow_pickle: bool) -> Dense:
    settings, name = _settings(module_folder), f"{module_folder.parent.name}/{module_folder.name}"
    if settings.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise UsageError(f"{name} reads {settings['module_input_name']}; expected dense layers after pooling.")
    if (module_folder / WEIGHTS).is_file():
        with open_shard(module_folder / WEIGHTS) as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    elif (module_folder / PICKLE).is_file() and allow_pickle:
        weights = _tensors_of_pickle(module_folder / PICKLE)
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
    """Return the tensors of a pickle that holds tensors only, without running code from it.

    Raises:
        UsageError: It is no pickle of tensors.
    """
    try:
        tensors: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UsageError(
            f"{path.parent.name}/{path.name} is no pickle of tensors alone: it is damaged, or would run code. Convert "
            f"its weights to {WEIGHTS}."
        ) from error
    return tensors


def _prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    settings = _json(folder / PROMPTS)
    setting = settings.get("prompts") or {}
    if not isinstance(setting, dict):
        raise UsageError(f"{folder / PROMPTS}: expected prompts by name, got {kind_of(setting)}. {AGAIN}")
    prompts = {str(name): str(text or "") for name, text in setting.items()}
    return prompts, settings.get("default_prompt_name")


def _prompt(folder: Path) -> tuple[str, tuple[str, ...]]:
    """Return the default prompt, and a warning where there are prompts but no default one."""
    prompts, default = _prompts(folder)
    if default is not None and default not in prompts:
        raise UsageError(
            f"{folder.name}/{PROMPTS}: default_prompt_name is '{default}'; expected one of {_named(prompts)}."
        )
    if default is not None or not any(prompts.values()):
        return prompts.get(default or "", ""), ()
    return "", (
        f"The model has prompts ({_named(prompts)}) and no default one, so texts are read without a prompt. Put the "
        "prompt before each text, or set default_prompt_name.",
    )


def _named(prompts: Iterable[str]) -> str:
    return ", ".join(prompts) or "none"
