"""Checks that a folder can be an output: it must not overlap the inputs, and its disk must have enough space."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from hf_pe.errors import UsageError, listed
from hf_pe.outputs.marker import foreign_files, is_result

Inputs = Mapping[str, Path]
"""Local paths that are read, by a phrase for messages such as "the model"."""


def check_output(output: Path, *, overwrite: bool, inputs: Inputs | None = None) -> None:
    """Refuse an output that cannot be written, or whose replacement would lose files; nothing is changed.

    Args:
        output: folder of the result.
        overwrite: an earlier result in this folder may be replaced.
        inputs: paths that the output must not overlap.

    Raises:
        UsageError: see `check_place` and `check_replaceable`.
    """
    check_place(output, f"Output {output}", inputs)
    check_replaceable(output, overwrite=overwrite)


def check_place(folder: Path, what: str, inputs: Inputs | None = None) -> None:
    """Refuse a path where no folder can be put by renaming, and one that overlaps an input.

    Raises:
        UsageError: `folder` is a file, a link, a mount point, the current folder or one that contains it, is under a
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
        raise UsageError(f"{what} is or contains the current folder of this process. Give another folder.")
    above = next(parent for parent in folder.absolute().parents if os.path.lexists(parent))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        kind = "read-only" if above.is_dir() else "no folder"
        raise UsageError(f"{what}: {above} is {kind}. Give a folder that can be written.")
    for name, path in (inputs or {}).items():
        relation = _overlap(folder, path)
        if relation:
            raise UsageError(f"{what} {relation.format(name)} ({path}), which must not change. Give another folder.")


def check_replaceable(output: Path, *, overwrite: bool) -> None:
    """Refuse a folder that is not empty, unless it is a result and `overwrite` is set.

    Raises:
        UsageError: the folder is not empty and `overwrite` is not set, or hf_pe did not write all of its files.
    """
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not overwrite:
        raise UsageError(
            f"Output folder {output} is not empty. Give another folder, or --overwrite to replace it after success."
        )
    if not is_result(output):
        names = listed(sorted(path.name for path in output.iterdir()))
        raise UsageError(
            f"Output folder {output} was not written by hf-pe (it has {names}), so --overwrite does not replace it. "
            "Give another folder, or remove this one yourself."
        )
    foreign = foreign_files(output)
    if foreign:
        raise UsageError(
            f"Output folder {output} holds files that hf-pe did not write ({listed(foreign)}), and --overwrite would "
            "remove them. Move them away, or give another folder."
        )


def require_space(path: Path, needed_bytes: int, what: str) -> None:
    """Refuse a path whose disk has too little free space.

    Args:
        path: that will be written; it need not exist.
        needed_bytes: size of what will be written.
        what: names it in the error.

    Raises:
        UsageError: the disk has less free space.
    """
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise UsageError(
            f"{path}: {what} takes about {_size(needed_bytes)}, and that disk has {_size(free)} free. "
            "Free some space, or give an output on a larger disk."
        )


def _overlap(folder: Path, path: Path) -> str | None:
    """Return how `folder` overlaps `path` as a phrase with {} for the name of `path`; None if they do not overlap."""
    inside, around = _contains(path, folder), _contains(folder, path)
    if inside and around:
        return "is {}'s own folder"
    return "holds {}" if around else "lies inside {}" if inside else None


def _contains(folder: Path, path: Path) -> bool:
    """Return whether `path` is `folder` or inside it, with links resolved; neither has to exist."""
    outer, inner = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    return any(_is_same(parent, outer) for parent in (inner, *inner.parents))


def _is_same(first: Path, second: Path) -> bool:
    """Return whether two paths name the same file; some file systems accept two spellings of one name."""
    return os.path.samefile(first, second) if first.exists() and second.exists() else first == second


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
