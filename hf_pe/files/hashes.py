"""SHA-256 of files, models and processors, by which a resumed run recognises that nothing has changed."""

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
"""Bytes from which on the hash of a file is remembered: 16 MB are hashed in about 10 ms."""
REMEMBERED = 2000
"""Most hashes that are remembered; the oldest are forgotten first."""
SETTLED_S = 2.0
"""Age of a file from which on its time tells whether it was changed: some file systems count whole seconds."""

FORGOTTEN = ("name_or_path", "_name_or_path", "is_local", "local_files_only", "truncation", "padding")
"""What a saved processor says of where it was loaded from, and of the last texts that it read."""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content as it is now."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content; of a large one, as it was when its size and times were the same.

    The hashes are kept in a small file in the user's cache folder. Where that cannot be read or written, the file is
    hashed each time.
    """
    stat = path.stat()
    if stat.st_size < LARGE:
        return sha256(path)
    name = str(path.resolve())
    state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    known = _recall().get(name)
    if isinstance(known, list) and known[:-1] == state:
        return str(known[-1])
    found = sha256(path)
    if time.time() - stat.st_mtime > SETTLED_S:
        _remember(name, [*state, found])
    return found


def sha256_of(parts: Any) -> str:
    """Return the SHA-256 of data that JSON can say."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def tensors_sha256(tensors: Iterable[tuple[str, Any]]) -> str:
    """Return the SHA-256 of named tensors: their names, dtypes, shapes and values.

    Args:
        tensors: as the items of a state dict; may lie on any device.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def processor_sha256(processor: Any) -> str:
    """Return a hash of what a tokenizer or another processor saves, without where it came from."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        for file in (path for path in sorted(Path(folder).rglob("*")) if path.is_file()):
            content = file.read_bytes()
            if file.suffix == ".json" and isinstance(told := json.loads(content), dict):
                content = json.dumps({key: told[key] for key in sorted(told) if key not in FORGOTTEN}).encode()
            found[file.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return sha256_of(found)


def value_sha256(tensor: Any) -> str:
    """Return the SHA-256 of a tensor's dtype, shape and values, as `fresh/open_model.py` works it out by itself."""
    import torch

    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def cache_file() -> Path:
    """Return the file that remembers hashes, beside the Hub's cache."""
    return Path(constants.HF_HOME, "hf_pe", "hashes.json")


def _recall() -> dict[str, Any]:
    return read_object_if_any(cache_file()) or {}


def _remember(name: str, entry: list[Any]) -> None:
    known = {key: value for key, value in _recall().items() if key != name} | {name: entry}
    try:
        cache_file().parent.mkdir(parents=True, exist_ok=True)
        write_whole(cache_file(), json.dumps(dict(list(known.items())[-REMEMBERED:])))
    except OSError:
        return
