"""Resolve the string by which a user names a model: a folder, a Hub id, a .gguf file, an adapter or a package."""

import functools
import importlib.util
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from transformers.integrations.gguf.reader import GgufHeader

from hf_pe.checkpoints.sentence_transformers import (
    MODULES,
    PROMPTS,
    TOKENIZATION,
    module_folders,
    read_modules,
)
from hf_pe.errors import UsageError, explained, one_line
from hf_pe.files.json_files import read_object
from hf_pe.files.own_files import (
    LICENCES,
    require_own_files,
)
from hf_pe.hub_errors import hub_reason
from hf_pe.plans import Frozen

ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Names of the files that PEFT writes."""
WEIGHT_FILES = (".safetensors", ".safetensors.index.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
TRAINING_PICKLES = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")
"""How the names of pickles begin that do not hold weights of the model."""
SIDE_FILES = (MODULES, PROMPTS, *TOKENIZATION)
"""Files beside a model that belong to it, but that neither the model nor its tokenizer writes; licences aside."""
Dtype = Literal["float32", "bfloat16", "float16"]


class Source(Frozen):
    """Hold where a model that the user named is loaded from.

    Attributes:
        name: Name that may be printed and published: a Hub id or a folder's name, never a path.
        path: Folder or Hub id that transformers can load from.
        spec: What the user wrote, or None where that reveals something about this machine.
        gguf_file: File inside `path`, or None.
        adapter: Folder of a PEFT adapter that is merged into the model, or None.
        dtype: Dtype of the weights once they are loaded; None: see `loaded_dtype`.
        trust_remote_code: Whether custom code that comes with the model may run.
        allow_pickle: Whether weights may be pickles, which can run code when loaded.
    """

    name: str
    path: str
    spec: str | None = None
    gguf_file: str | None = None
    adapter: str | None = None
    dtype: Dtype | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False

    @property
    def loaded_dtype(self) -> torch.dtype | None:
        """The dtype of the weights once they are loaded; None stands for the dtype that they are stored in.

        A quantized .gguf file becomes bfloat16: float32 would take twice the memory without more precision.
        """
        if self.dtype is not None:
            return getattr(torch, self.dtype)  # type: ignore[no-any-return]
        if self.gguf is None:
            return None
        return GgufHeader.from_file(str(self.gguf)).dtype or torch.bfloat16

    @property
    def gguf(self) -> Path | None:
        """The path of the .gguf file, or None."""
        return Path(self.path, self.gguf_file) if self.gguf_file else None

    @property
    def folder(self) -> Path | None:
        """The local folder, or None for a Hub id or a model that was never saved."""
        return Path(self.path) if self.path and Path(self.path).is_dir() else None

    def inputs(self) -> dict[str, Path]:
        """Return the local paths that the model is read from, by a description; no output may touch them."""
        base = "the adapter's base" if self.adapter else "the model"
        paths = {base: Path(self.path, self.gguf_file or "")} if self.folder else {}
        return paths | ({"the adapter": Path(self.adapter)} if self.adapter else {})

    def beside(self) -> Path | None:
        """Return the folder of the small files beside the weights: for a Hub id a snapshot of them, or None.

        Raises:
            UsageError: A module's folder lies outside of the model's own.
        """
        if self.folder is not None or self.spec is None:
            return self.folder
        try:
            return _small_files(self.path)
        except UsageError:
            raise
        except (OSError, ValueError):  # loading the model will fail for the same reason and say so
            return None

    def options(self) -> dict[str, Any]:
        """Return the arguments for `from_pretrained`."""
        gguf = {"gguf_file": self.gguf_file} if self.gguf_file else {}
        return {"trust_remote_code": self.trust_remote_code, **gguf}


def resolve(
    model: str, *, dtype: Dtype | None = None, trust_remote_code: bool = False, allow_pickle: bool = False
) -> Source:
    """Resolve the string `model` into a `Source`.

    Args:
        model: A folder (of a model or of a PEFT adapter), a .gguf file, `package:NAME/inner/path` or a Hub id.
        dtype: Dtype of the weights once they are loaded; None: see `Source.loaded_dtype`.
        trust_remote_code: Whether custom code that comes with the model may run.
        allow_pickle: Whether weights may be pickles.

    Raises:
        UsageError: There is no such model, it has no config, it has pickled weights or custom code that were not
            allowed, or a link or a name in its files leads out of its folder.
    """
    path = package_path(model) if model.startswith("package:") else Path(model).expanduser()
    spec = model if model.startswith("package:") or not path.exists() else None
    flags: dict[str, Any] = {
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
        "allow_pickle": allow_pickle,
        "spec": spec,
    }
    if path.suffix == ".gguf" and path.is_file():
        return _checked_gguf(Source(name=path.stem, path=str(path.parent), gguf_file=path.name, **flags))
    if not path.is_dir():
        if path.exists():
            raise UsageError(f"Model {model} is a file; expected a folder, a .gguf file or a Hub id.")
        if model.startswith(("package:", ".", "/", "~")) or model.count("/") > 1:
            raise UsageError(f"Model folder {model} does not exist. Expected a folder, a .gguf file or a Hub id.")
        return Source(name=model, path=model, **flags)
    if not model.startswith("package:"):  # an installer may have put links there
        require_own_files(path)
    if (path / ADAPTER).is_file() and not (path / "config.json").is_file():
        return _adapted(path, dtype=dtype, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    source = Source(name=public_folder_name(path), path=str(path), gguf_file=_only_gguf(path), **flags)
    if source.gguf_file:
        return _checked_gguf(source)
    _check_folder(path, source)
    return source


def _adapted(folder: Path, **flags: Any) -> Source:
    """Return the source of the base model that an adapter names, with the adapter."""
    base = read_object(folder / ADAPTER).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UsageError(f"{folder} is an adapter that does not say of which model; load both and merge them first.")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UsageError(f"{folder} has no {ADAPTER_WEIGHTS}; expected what PEFT's save_pretrained writes.")
    if str(base).startswith("package:"):
        raise UsageError(
            f"{folder.name}/{ADAPTER} names {base} as its base model; expected a folder or a Hub id. Set "
            "base_model_name_or_path to the base model's."
        )
    if (Path(base) / ADAPTER).is_file() and not (Path(base) / "config.json").is_file():
        raise UsageError(
            f"{folder.name}/{ADAPTER} names another adapter ({base}) as its base model; expected a model. Merge that "
            "adapter into its own base model first."
        )
    source = resolve(str(base), **flags)
    return source.model_copy(update={"adapter": str(folder), "name": public_folder_name(folder), "spec": None})


def package_path(model: str) -> Path:
    """Return the folder that `package:NAME/inner/path` names.

    Raises:
        UsageError: No such package is installed.
    """
    package, _, inner = model.removeprefix("package:").partition("/")
    spec = (
        importlib.util.find_spec(package) if package.isidentifier() else None
    )  # would import parents of a dotted name
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"Model {model}: no Python package '{package}' is installed here; install it with pip.")
    return Path(next(iter(spec.submodule_search_locations))) / inner


def public_folder_name(path: Path) -> str:
    """Return a name for a folder that reveals nothing about this machine's paths."""
    absolute = path.resolve()
    return absolute.parent.name if absolute.name in ("model", "models", "checkpoint") else absolute.name


def _only_gguf(path: Path) -> str | None:
    names = sorted(p.name for p in path.glob("*.gguf"))
    if (path / "config.json").is_file() or not names:
        return None
    if len(names) > 1:
        raise UsageError(f"{path} has several GGUF files: {', '.join(names)}. Name one: {path / names[0]}.")
    return names[0]


def _check_folder(path: Path, source: Source) -> None:
    read_modules(path)
    if not (path / "config.json").is_file():
        raise UsageError(
            f"Model folder {path} has no config.json; expected what save_pretrained writes, or a .gguf file."
        )
    names = [p.name for p in path.iterdir()]
    pickled = [n for n in names if n.endswith(PICKLES) and not n.startswith(TRAINING_PICKLES)]
    if pickled and not any(n.endswith(WEIGHT_FILES) for n in names) and not source.allow_pickle:
        raise UsageError(
            f"{path} has its weights as pickle ({pickled[0]}), which can run code when loaded. Convert them to "
            "safetensors, or allow it with allow_pickle: true (--allow-pickle) if you trust where they come from."
        )


def _checked_gguf(source: Source) -> Source:
    """Return the source of a .gguf file after reading its header.

    Raises:
        UsageError: The header cannot be read.
    """
    with reading_files(source):
        GgufHeader.from_file(str(source.gguf))
    return source


def reading_files(source: Source) -> AbstractContextManager[None]:
    """Turn any exception of a library that reads a model's files into a `UsageError`; see `errors.explained`."""
    return explained(lambda error: _why(source, error))


def _why(source: Source, error: Exception) -> str:
    if source.folder is None:
        return (
            f"Model {source.path} could not be loaded from the Hub, and is no local folder: {hub_reason(error)}. Check "
            "the spelling, the network, and `hf auth login` for private models."
        )
    return (
        f"{source.name} cannot be loaded: {short_reason(error)}. Its files are damaged or incomplete: download the "
        "folder again, or save it again with save_pretrained."
    )


def short_reason(error: BaseException) -> str:
    """Return an error's message in one line, with its type where the message is short or a bare key."""
    text = one_line(error, 400).rstrip(". ")
    return f"{type(error).__name__}: {text}" if isinstance(error, KeyError) or len(text) < 20 else text


@functools.cache
def _small_files(repo: str) -> Path:
    """Return a snapshot of the small files beside the weights of a Hub id, downloaded once."""
    snapshot = Path(snapshot_download(repo, allow_patterns=[*SIDE_FILES, *LICENCES]))
    folders = module_folders(snapshot)
    return Path(snapshot_download(repo, allow_patterns=[f"{name}/*" for name in folders])) if folders else snapshot
