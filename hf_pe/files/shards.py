"""List the safetensors files of a folder, and check by their headers that each is complete."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hf_pe.errors import UsageError
from hf_pe.files.json_files import AGAIN, kind_of, read_object
from hf_pe.files.own_files import own_file

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"


def read_index(folder: Path) -> dict[str, str]:
    """Return the name of the file that holds each tensor, from the index in `folder`.

    Raises:
        UsageError: The index is damaged, or names a file that is missing or outside of the folder.
    """
    index = folder / INDEX
    weight_map: Any = read_object(index).get("weight_map")
    files = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not files or not all(isinstance(file, str) for file in files):
        value = "one that does not name a file for each" if isinstance(weight_map, dict) else kind_of(weight_map)
        raise UsageError(f"{index}: expected weight_map with the file of each tensor, got {value}. {AGAIN}")
    for name in sorted(set(files)):
        if not own_file(folder, name, INDEX).is_file():
            raise UsageError(f"{index} names {name}, which is not in the folder. Download that file too.")
    return weight_map  # type: ignore[no-any-return]


def open_shard(file: str | Path) -> Any:
    """Open a safetensors file.

    Raises:
        UsageError: The file is truncated or not in the safetensors format.
    """
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"{file} cannot be read as safetensors ({error}): it is damaged or truncated. {AGAIN}"
        ) from error


def require_whole(folder: Path) -> None:
    """Refuse a folder whose safetensors files cannot be opened, or lack tensors that its index names.

    Raises:
        UsageError: A file is damaged or incomplete; see `read_index` and `open_shard`.
    """
    if (folder / WHOLE).is_file():
        _require_tensors(folder / WHOLE, set())
    elif (folder / INDEX).is_file():
        weight_map = read_index(folder)
        for name in sorted(set(weight_map.values())):
            _require_tensors(folder / name, {tensor for tensor, file in weight_map.items() if file == name})


def _require_tensors(file: Path, expected: set[str]) -> None:
    with open_shard(file) as opened:
        missing = sorted(expected - set(opened.keys()))
    if missing:
        raise UsageError(
            f"{file} lacks {missing[0]} ({len(missing)} tensors in all), which it should hold by {INDEX}. The files "
            f"belong to two models, or are damaged. {AGAIN}"
        )
