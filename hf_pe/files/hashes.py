"""Hash files, models and processors with SHA-256, so that a resumed run recognizes that nothing has changed."""

import hashlib
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from hf_pe.files.atomic import write_whole
from hf_pe.files.json_files import read_object_if_any

LARGE = 16 * 2**20
"""Size in bytes from which on the hash of a file is cached: hashing 16 MB takes about 10 ms."""
CACHED_HASHES = 2000
"""Number of hashes in the cache; the oldest are dropped first."""
SETTLED_S = 2.0
"""Age of a file, in seconds, above which its modification time shows every change: some file systems count seconds."""
VOLATILE_SETTINGS = ("name_or_path", "_name_or_path", "is_local", "local_files_only", "truncation", "padding")
"""Settings of a saved processor that depend on where it was loaded from and which texts it has read last."""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content as it is now."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content; for a large file it is cached until its size or times change.

    The hashes are kept in a small file in the user's cache folder. Where that cannot be read or written, the file is
    hashed each time.
    """
    stat = path.stat()
    if stat.st_size < LARGE:
        return sha256(path)
    name = str(path.resolve())
    state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    entry = _cached_entries().get(name)
    if isinstance(entry, list) and entry[:-1] == state:
        return str(entry[-1])
    digest = sha256(path)
    if time.time() - stat.st_mtime > SETTLED_S:
        _cache(name, [*state, digest])
    return digest


def sha256_of(parts: Any) -> str:
    """Return the SHA-256 of data that can be written as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def tensors_sha256(tensors: Iterable[tuple[str, Any]]) -> str:
    """Return the SHA-256 over the names, dtypes, shapes and values of tensors.

    Args:
        tensors: Names and tensors, such as the items of a state dict; they may be on any device.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def processor_sha256(processor: Any) -> str:
    """Return a hash of the files that a tokenizer or another processor saves, without where it was loaded from."""
    hashes = {}
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        for file in (path for path in sorted(Path(folder).rglob("*")) if path.is_file()):
            content = file.read_bytes()
            if file.suffix == ".json" and isinstance(settings := json.loads(content), dict):
                content = json.dumps(
                    {key: settings[key] for key in sorted(settings) if key not in VOLATILE_SETTINGS}
                ).encode()
            hashes[file.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return sha256_of(hashes)


def value_sha256(tensor: Any) -> str:
    """Return the SHA-256 of a tensor's dtype, shape and values; `fresh/open_model.py` computes the same by itself."""
    import torch

    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def cache_file() -> Path:
    """Return the file that caches hashes, beside the Hub's cache."""
    return Path(constants.HF_HOME, "hf_pe", "hashes.json")


def _cached_entries() -> dict[str, Any]:
    return read_object_if_any(cache_file()) or {}


def _cache(name: str, entry: list[Any]) -> None:
    entries = {key: value for key, value in _cached_entries().items() if key != name} | {name: entry}
    try:
        cache_file().parent.mkdir(parents=True, exist_ok=True)
        write_whole(cache_file(), json.dumps(dict(list(entries.items())[-CACHED_HASHES:])))
    except OSError:
        return
