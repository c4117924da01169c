"""What may be an output: a folder of its own, clear of everything that is read, with room for what is written."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from hf_pe.errors import UsageError, listed
from hf_pe.outputs.marker import is_result, strange_files

Inputs = Mapping[str, Path]
"""Local paths that are read, by what they are: "the model"."""


def check_output(output: Path, *, overwrite: bool, inputs: Inputs | None = None) -> None:
    """Refuse an output that cannot be written, or whose replacement would lose something. Changes nothing.

    Args:
        output: folder of a result.
        overwrite: a result that lies there may be replaced.
        inputs: what no output may be, hold or lie inside.

    Raises:
        UsageError: for these reasons.
    """
    check_place(output, f"Output {output}", inputs)
    check_replaceable(output, overwrite=overwrite)


def check_place(folder: Path, what: str, inputs: Inputs | None = None) -> None:
    """Refuse a place where no folder can be put by renaming, and one that overlaps what is read.

    Raises:
        UsageError: `folder` is a file, a link, a mount point, the current folder or one that holds it, lies under a
            file or in a read-only folder, or overlaps an input.
    """
    if folder.name in ("", ".."):
        raise UsageError(f"{what}: expected a folder with a name of its own, such as build/small.")
    if folder.is_symlink():
        raise UsageError(f"{what} is a link. Give the folder that it names: {os.path.realpath(folder)}.")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{what} is a file; expected a folder.")
    if os.path.ismount(folder):
        raise UsageError(f"{what} is a mount point, which cannot be renamed. Give a folder inside: {folder / 'small'}.")
    if _contains(folder, Path.cwd()):
        raise UsageError(f"{what} is, or holds, the folder that this program runs in. Give another one.")
    above = next(parent for parent in folder.absolute().parents if os.path.lexists(parent))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        kind = "read-only" if above.is_dir() else "no folder"
        raise UsageError(f"{what}: {above} is {kind}. Give a folder in a place that can be written.")
    for name, path in (inputs or {}).items():
        relation = _overlap(folder, path)
        if relation:
            raise UsageError(f"{what} {relation.format(name)} ({path}), which must stay as it is. Give another folder.")


def check_replaceable(output: Path, *, overwrite: bool) -> None:
    """Refuse a folder that is not empty, unless it is a result and `overwrite` is given.

    Raises:
        UsageError: for these reasons.
    """
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not overwrite:
        raise UsageError(
            f"Output folder {output} is not empty. Give another one, or --overwrite to replace it after success."
        )
    if not is_result(output):
        names = listed(sorted(path.name for path in output.iterdir()))
        raise UsageError(
            f"Output folder {output} was not written by hf-pe (it has {names}), so --overwrite does not replace it. "
            "Give another folder, or remove this one yourself."
        )
    strange = strange_files(output)
    if strange:
        raise UsageError(
            f"Output folder {output} holds files that hf-pe did not write ({listed(strange)}), and --overwrite would "
            "remove them. Move them away, or give another folder."
        )


def require_space(place: Path, needed: int, what: str) -> None:
    """Refuse a place whose disk is too small.

    Args:
        place: that is written; need not exist.
        needed: bytes.
        what: is written, in the error.

    Raises:
        UsageError: the disk has less room.
    """
    existing = next(p for p in (place.absolute(), *place.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UsageError(
            f"{place}: {what} takes about {_size(needed)}, and that disk has {_size(free)} free. "
            "Free some, or give an output on a larger disk."
        )


def _overlap(folder: Path, path: Path) -> str | None:
    """Return how `folder` overlaps `path`, a sentence with a place for its name: None where it does not."""
    inside, around = _contains(path, folder), _contains(folder, path)
    if inside and around:
        return "is {}'s own folder"
    return "holds {}" if around else "lies inside {}" if inside else None


def _contains(folder: Path, path: Path) -> bool:
    """Return whether `path` is or lies inside `folder`, after links; need not exist."""
    outer, inner = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    return any(_is_same(each, outer) for each in (inner, *inner.parents))


def _is_same(one: Path, other: Path) -> bool:
    """Compare as files where both exist, since some file systems take two spellings for one name."""
    return os.path.samefile(one, other) if one.exists() and other.exists() else one == other


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
