"""Decide which files belong to a model's own folder, and which of them are copied into a result.

A model's folder may come from anyone. Files that its own files name (shards, modules, tokenizers) are looked up inside
it, and links that lead out of it are refused. Only files on a list are copied: never hidden files, pickles, logs or
scripts.
"""

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from hf_pe.errors import UsageError, listed
from hf_pe.files.atomic import write_whole
from hf_pe.files.json_files import read_json_if_any, read_object_if_any

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tekken.json",
    "vocab.json", "vocab.txt", "vocab-src.json", "vocab-tgt.json", "merges.txt", "tokenizer.model",
    "tokenizer.model.v*", "spiece.model", "spm.model", "spm_char.model", "sentencepiece.model",
    "sentencepiece.bpe.model", "source.spm", "target.spm", "target_vocab.json", "entity_vocab.json", "bpe.codes",
    "dict.txt", "emoji.json", "byte_maps.json", "normalizer.json", "prophetnet.tokenizer", "word_shape.json",
    "word_pronunciation.json", "alphabet.json", "*.model", "*.tiktoken", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""Files that the tokenizers of transformers read."""
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "audio_tokenizer_config.json",
)
SENTENCE_FILES = ("modules.json", "config_sentence_transformers.json", "sentence_*_config.json")
CARRIED = (*TOKENIZER_FILES, *PROCESSOR_FILES, *SENTENCE_FILES, "generation_config.json")
"""Names of the files that are copied from the original into a result, apart from licences."""
TEMPLATES = "additional_chat_templates"
"""Folder in which a tokenizer keeps further chat templates."""
_LICENCE = re.compile(
    r"(?:\w+[_-])?(?:licen[cs]e|copying|notices?|use[_-]policy)(?:[_-](?!key)\w+)*(?:\.(?:txt|md|rst|pdf))?",
    re.IGNORECASE,
)
LICENCES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*")
"""Patterns by which licences are downloaded from the Hub."""
_REWRITTEN = re.compile(
    r"(?:model|pytorch_model|tf_model|flax_model|rust_model|adapter_model)[\w.-]*\.(?:safetensors|bin|h5|msgpack|ot)"
    r"(?:\.index\.json)?|.*\.gguf|config\.json|adapter_config\.json|README\.md|report\.json|plan\.json|recipe\.yaml"
    r"|\.gitattributes|\.git|\.cache|\.hf_pe\.json|__pycache__"
)
"""Matches files that a result replaces by its own, or that no model needs; these are not mentioned to the user."""


def is_own(folder: Path, path: Path) -> bool:
    """Return whether `path`, with links resolved, lies in `folder` or is one of its blobs in the Hub's cache.

    In the Hub's cache a model's folder is `models--A--B/snapshots/COMMIT`, whose files are links into `blobs` beside
    `snapshots`.
    """
    root, target = folder.resolve(), path.resolve()
    if target.is_relative_to(root):
        return True
    blobs = root.parent.parent / "blobs"
    return root.parent.name == "snapshots" and target.parent == blobs and not blobs.is_symlink()


def require_own(folder: Path, path: Path) -> Path:
    """Return `path` after checking that no link in it leads out of a model's folder.

    Raises:
        UsageError: A link does.
    """
    if not is_own(folder, path):
        raise UsageError(
            f"{path} is a link that leads out of the folder {folder.name}. Nothing outside of it is read or written: "
            f"put the file itself there, such as by cp -rL {folder.name} COPY, or remove the link."
        )
    return path


def own_file(folder: Path, name: str, named_by: str) -> Path:
    """Return the path of a file whose name stands in another file of a model.

    Args:
        folder: Folder of the model.
        name: Name of the file, as written.
        named_by: Name of the file in which it is written.

    Raises:
        UsageError: The name is no path inside the folder, or a link in it leads out of the folder.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name:
        raise UsageError(
            f"{folder.name}/{named_by} names {name!r}, which lies outside of the model's own folder. Expected the name "
            "of a file inside it."
        )
    return require_own(folder, folder / path)


def require_own_files(folder: Path) -> None:
    """Refuse the folder of a model that has a link out of it, or a file that names a file outside of it.

    This checks the folder itself and the folders of its tokenizers, templates and modules; nothing reads other folders
    or hidden files.

    Raises:
        UsageError: There is one; the message names it.
    """
    modules = [folder / str(entry.get("path") or ".") for entry in _modules(folder)]
    for subfolder in dict.fromkeys([folder, folder / TEMPLATES, *_tokenizer_folders(folder), *modules]):
        for path in sorted(subfolder.iterdir()) if subfolder.is_dir() else ():
            if path.is_symlink() and not path.name.startswith("."):
                require_own(folder, path)
    for index in sorted(folder.glob("*.index.json")):
        require_own_shards(folder, index)
    tokenizer_files = _json(folder / "tokenizer_config.json").get("fast_tokenizer_files")
    for name in tokenizer_files if isinstance(tokenizer_files, list) else ():
        own_file(folder, str(name), "tokenizer_config.json")


def require_own_shards(folder: Path, index: Path) -> None:
    """Refuse the index of a checkpoint that names files outside of its folder."""
    shards = _json(index).get("weight_map")
    for name in sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else ():
        own_file(folder, name, index.name)


def is_licence(name: str) -> bool:
    """Return whether a file's name is that of a licence, or of a notice that belongs to one."""
    return _LICENCE.fullmatch(name) is not None


def carried_files(folder: Path, *, own_code: bool = False) -> list[Path]:
    """Return the files in the folder of a model that are copied into a result.

    Args:
        folder: Folder of the original.
        own_code: Whether the user allows the custom code that comes with it.

    Raises:
        UsageError: A link leads out of the folder.
    """
    paths = [path for path in sorted(folder.iterdir()) if _is_carried(path.name)]
    paths += sorted((folder / TEMPLATES).glob("[!.]*.jinja"))
    for tokenizer in _tokenizer_folders(folder):
        paths += [path for path in sorted(tokenizer.iterdir()) if _is_carried(path.name)]
    files = [require_own(folder, path) for path in paths if path.is_file()]
    return files + (code_files(folder) if own_code else [])


def code_files(folder: Path) -> list[Path]:
    """Return the Python files of a model's custom code: those that its settings name and those that these import.

    Raises:
        UsageError: A link leads out of the folder.
    """
    from transformers.dynamic_module_utils import get_relative_import_files

    modules = {_module_of(reference) for reference in _references(folder)} - {None}
    files = [folder / f"{name}.py" for name in sorted(filter(None, modules)) if (folder / f"{name}.py").is_file()]
    imported = [Path(path) for file in files for path in get_relative_import_files(file) if Path(path).is_file()]
    return [require_own(folder, path) for path in dict.fromkeys([*files, *imported])]


def left_behind(folder: Path, *, own_code: bool = False) -> list[str]:
    """Return the names in the folder of a model that are neither copied into a result nor replaced there."""
    carried = {path.relative_to(folder).parts[0] for path in carried_files(folder, own_code=own_code)}
    modules = {str(entry.get("path")).split("/")[0] for entry in _modules(folder)}
    names = sorted(path.name for path in folder.iterdir())
    return [name for name in names if name not in carried | modules and not _REWRITTEN.fullmatch(name)]


def left_behind_sentence(folder: Path, *, own_code: bool = False) -> str:
    """Return a sentence that names the files that are not copied into a result; "" where there are none."""
    names = left_behind(folder, own_code=own_code)
    return f"not copied from {folder.name}, since not known as part of a model: {listed(names)}" if names else ""


def without_missing_code_(folder: Path) -> None:
    """Remove `auto_map` from the settings in a result's folder where the code that it names was not copied."""
    for name in ("config.json", "tokenizer_config.json", *PROCESSOR_FILES):
        settings = _json(folder / name)
        modules = {_module_of(reference) for reference in _auto_map_references(settings)} - {None}
        if modules and not all((folder / f"{module}.py").is_file() for module in modules):
            del settings["auto_map"]
            write_whole(folder / name, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _tokenizer_folders(folder: Path) -> list[Path]:
    """Return the folders in which a processor keeps additional tokenizers, such as qformer_tokenizer."""
    return sorted(path for path in folder.glob("*_tokenizer") if path.is_dir())


def _is_carried(name: str) -> bool:
    return is_licence(name) or any(fnmatchcase(name, pattern) for pattern in CARRIED if not name.startswith("."))


def _references(folder: Path) -> Iterator[str]:
    """Yield the custom classes that a model's settings name, as MODULE.CLASS."""
    for name in ("config.json", "tokenizer_config.json", *PROCESSOR_FILES):
        yield from _auto_map_references(_json(folder / name))
    yield from (str(entry.get("type")) for entry in _modules(folder))


def _auto_map_references(settings: dict[str, Any]) -> Iterator[str]:
    auto_map = settings.get("auto_map")
    for entry in auto_map.values() if isinstance(auto_map, dict) else (auto_map,):
        yield from (str(reference) for reference in (entry if isinstance(entry, list) else [entry]) if reference)


def _module_of(reference: str) -> str | None:
    """Return the module of MODULE.CLASS; None where it is in a package or in another repository of the Hub."""
    module, _, name = reference.rpartition(".")
    return module if module.isidentifier() and name.isidentifier() else None


def _modules(folder: Path) -> list[dict[str, Any]]:
    entries = read_json_if_any(folder / "modules.json")
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty dict where it cannot be read, which loading the model will report."""
    return read_object_if_any(path) or {}
