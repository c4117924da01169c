"""The safetensors files of a folder: which they are, and that each is whole as far as its header tells."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hf_pe.errors import UsageError
from hf_pe.files.json_files import AGAIN, kind_of, read_object
from hf_pe.files.own_files import own_file

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"


def read_index(folder: Path) -> dict[str, str]:
    """Return from the index of `folder` the file of each tensor, by name.

    Raises:
        UsageError: the index is damaged, names a file outside of the folder, or one that is not there.
    """
    index = folder / INDEX
    place: Any = read_object(index).get("weight_map")
    if not isinstance(place, dict) or not place or not all(isinstance(file, str) for file in place.values()):
        came = "one that does not name a file for each" if isinstance(place, dict) else kind_of(place)
        raise UsageError(f"{index}: expected weight_map with the file of each tensor, got {came}. {AGAIN}")
    for name in sorted(set(place.values())):
        if not own_file(folder, name, INDEX).is_file():
            raise UsageError(f"{index} names {name}, which is not in the folder. Download that file too.")
    return place


def open_shard(file: str | Path) -> Any:
    """Open a file of safetensors.

    Raises:
        UsageError: it is damaged: cut off, or no safetensors.
    """
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"{file} cannot be read as safetensors ({error}): it is damaged or cut off. {AGAIN}"
        ) from error


def require_whole(folder: Path) -> None:
    """Refuse a folder whose safetensors cannot be opened, or whose index names others than are there.

    Raises:
        UsageError: for these reasons, see `read_index` and `open_shard`.
    """
    if (folder / WHOLE).is_file():
        _require_tensors(folder / WHOLE, set())
    elif (folder / INDEX).is_file():
        place = read_index(folder)
        for name in sorted(set(place.values())):
            _require_tensors(folder / name, {tensor for tensor, file in place.items() if file == name})


def _require_tensors(file: Path, expected: set[str]) -> None:
    with open_shard(file) as opened:
        missing = sorted(expected - set(opened.keys()))
    if missing:
        raise UsageError(
            f"{file} does not hold {missing[0]} ({len(missing)} tensors in all), as {INDEX} says. The files are of two "
            f"models, or damaged. {AGAIN}"
        )
