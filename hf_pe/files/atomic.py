"""Files that are whole at any time, and how to recognise that one could not be written."""

import re
import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

_BESIDE = re.compile(r"\..*\.hf_pe-[0-9a-f]{8}")
_FAILED_WRITE = re.compile(r"\(os error \d+\)|No space left|PytorchStreamWriter failed|inline_container\.cc")
"""How libraries without an OSError say it: tokenizers and safetensors (Rust), torch.save (C++)."""


def unique_sibling(path: Path) -> Path:
    """Return a hidden path beside `path` that no one else uses: `.NAME.hf_pe-` and eight random digits."""
    return path.with_name(f".{path.name[:50]}.hf_pe-{secrets.token_hex(4)}")


def is_unfinished(path: Path) -> bool:
    """Return whether `path` has a name of `unique_sibling`: what a killed process was writing, or one that lives is."""
    return _BESIDE.fullmatch(path.name) is not None


def is_hidden(name: str, but: Collection[str] = ()) -> bool:
    """Return whether a file or folder of this name is none of a result's: hidden, unless `but` names it, or a cache."""
    return name == "__pycache__" or (name.startswith(".") and name not in but)


def files_below(folder: Path, skips: Callable[[PurePath], bool]) -> Iterator[Path]:
    """Yield what lies below a folder and is no folder, in order; links are yielded and never followed.

    Args:
        folder: that is walked through.
        skips: whether a path inside it is left out, with all that lies below it.
    """

    def walk(place: Path) -> Iterator[Path]:
        for path in sorted(place.iterdir()):
            if skips(path.relative_to(folder)):
                continue
            if path.is_dir() and not path.is_symlink():
                yield from walk(path)
            else:
                yield path

    return walk(folder)


@contextmanager
def written_beside(file: Path) -> Iterator[Path]:
    """Yield a path to write to, then rename it to `file`: what lies there stays until the new file is whole."""
    fresh = unique_sibling(file)
    try:
        yield fresh
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Write beside `file`, then rename: what lies there stays until the new text is whole."""
    with written_beside(file) as fresh:
        fresh.write_text(text, "utf-8")


def failed_write(error: BaseException) -> str | None:
    """Return the reason where `error` says that a file could not be written (a full disk, say), else None.

    Only some libraries raise an OSError: safetensors, tokenizers and torch.save have errors of their own.
    """
    if isinstance(error, OSError):
        return None if error.errno is None else str(error)
    text = " ".join(str(error).split())
    return text[:300] if _FAILED_WRITE.search(text) else None
