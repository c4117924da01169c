"""Save a model with all files that belong beside its weights."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from transformers import (
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from hf_pe import progress
from hf_pe.adapters import adapters_aside
from hf_pe.checkpoints.load import write_dtype
from hf_pe.checkpoints.mixed_dtypes import differing_dtypes
from hf_pe.checkpoints.sentence_transformers import copy_modules, module_folders
from hf_pe.checkpoints.source import PICKLES, SIDE_FILES, Source
from hf_pe.files.own_files import (
    carried_files,
    code_files,
    is_licence,
    left_behind_sentence,
    require_own,
    without_missing_code_,
)
from hf_pe.quantizers.registry import restore_layout_
from hf_pe.surgery import main_dtype


def save_model(model: PreTrainedModel, processor: Any, folder: Path, source: Source | None = None) -> None:
    """Write weights, config, processor and the source's side files (pooling, licence) into `folder`.

    Adapters that were added to the model are written beside its weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    restore_layout_(model)
    name_or_path = model.config._name_or_path
    model.config._name_or_path = ""
    if getattr(model, "_hf_peft_config_loaded", False):
        model.save_pretrained(folder)  # the adapters alone
    with adapters_aside(model):
        model.save_pretrained(folder)
    model.config._name_or_path = name_or_path
    if differing_dtypes(model):  # save_pretrained writes the dtype of the first parameter
        write_dtype(folder / "config.json", main_dtype(model))
    if processor is not None:
        processor.save_pretrained(folder)
        _forget_paths(folder)
    for item in _side_files(source):
        shutil.copyfile(item, folder / item.name)
    beside = source.beside() if source else None
    if beside is not None:
        copy_modules(beside, folder, getattr(model.config, "hidden_size", None))


def copy_beside(folder: Path, fresh: Path, config: PretrainedConfig, *, own_code: bool = False) -> None:
    """Copy the files beside the weights in `folder` into `fresh`, where it has no file of that name.

    `own_files.carried_files` decides which files these are; `say_left_behind` names the others to the user.

    Args:
        folder: Folder of the original.
        fresh: Folder of the result.
        config: Config of the result.
        own_code: Whether the user allows the custom code that comes with the original.

    Raises:
        UsageError: A link leads out of the folder.
    """
    for path in carried_files(folder, own_code=own_code):
        target = fresh / path.relative_to(folder)
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    if not own_code:
        without_missing_code_(fresh)
    copy_modules(folder, fresh, getattr(config, "hidden_size", None))


def say_left_behind(source: Source) -> None:
    """Tell the user which files in the original's folder are no part of a model and are therefore not copied.

    A .gguf file is the whole model, so files beside it are not mentioned.
    """
    folders = [source.folder, Path(source.adapter) if source.adapter else None]
    for folder in folders if source.gguf_file is None else ():
        if folder is not None and (sentence := left_behind_sentence(folder, own_code=source.trust_remote_code)):
            progress.say(sentence)


def weight_bytes_on_disk(folder: Path) -> int:
    """Return the bytes of the weight files in `folder`."""
    return sum(p.stat().st_size for p in folder.iterdir() if p.suffix in (".safetensors", ".gguf", *PICKLES))


def weight_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in `folder` that decides the model's outputs.

    These are config.json, the weight files, and the weight files of sentence-transformers' modules.
    """
    names = ("config.json", SAFE_WEIGHTS_INDEX_NAME)
    paths = [p for p in folder.iterdir() if p.suffix == ".safetensors" or p.name in names]
    paths += [p for module in module_folders(folder) for p in (folder / module).glob("*.safetensors")]
    hashes = {}
    for path in sorted(paths):
        with path.open("rb") as file:
            hashes[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _side_files(source: Source | None) -> list[Path]:
    folder = source.beside() if source else None
    if folder is None:
        return []
    paths = [path for path in sorted(folder.iterdir()) if path.name in SIDE_FILES or is_licence(path.name)]
    files = [require_own(folder, path) for path in paths if path.is_file()]
    return files + (code_files(folder) if source and source.trust_remote_code else [])


def _forget_paths(folder: Path) -> None:
    """Remove the path that a tokenizer was loaded from out of its saved files: they may be published."""
    for file in (folder / "tokenizer_config.json", folder / "processor_config.json"):
        if file.is_file():
            content = json.loads(file.read_text("utf-8"))
            for key in ("name_or_path", "_name_or_path"):
                if os.sep in str(content.get(key, "")) and Path(str(content[key])).exists():
                    del content[key]
            file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
