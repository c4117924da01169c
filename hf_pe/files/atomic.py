"""Write files so that each is complete at any time, and recognize errors of a failed write."""

import re
import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

_BESIDE = re.compile(r"\..*\.hf_pe-[0-9a-f]{8}")
_FAILED_WRITE = re.compile(r"\(os error \d+\)|No space left|PytorchStreamWriter failed|inline_container\.cc")
"""Matches the messages of libraries that raise no OSError: tokenizers and safetensors (Rust), torch.save (C++)."""


def unique_sibling(path: Path) -> Path:
    """Return a hidden path beside `path` that no one else uses: `.NAME.hf_pe-` and eight random digits."""
    return path.with_name(f".{path.name[:50]}.hf_pe-{secrets.token_hex(4)}")


def is_unfinished(path: Path) -> bool:
    """Return whether `path` has a name from `unique_sibling`: a running or killed process has not finished it."""
    return _BESIDE.fullmatch(path.name) is not None


def is_hidden(name: str, but: Collection[str] = ()) -> bool:
    """Return whether a file or folder of this name is no part of a result: a cache, or hidden and not in `but`."""
    return name == "__pycache__" or (name.startswith(".") and name not in but)


def files_below(folder: Path, skips: Callable[[PurePath], bool]) -> Iterator[Path]:
    """Yield all files below a folder in sorted order; links are yielded and never followed.

    Args:
        folder: Folder to walk through.
        skips: Returns whether to leave out a path relative to `folder`, with everything below it.
    """

    def walk(parent: Path) -> Iterator[Path]:
        for path in sorted(parent.iterdir()):
            if skips(path.relative_to(folder)):
                continue
            if path.is_dir() and not path.is_symlink():
                yield from walk(path)
            else:
                yield path

    return walk(folder)


@contextmanager
def written_beside(file: Path) -> Iterator[Path]:
    """Yield a path to write to, then rename it to `file`, which keeps its content until the new file is complete."""
    fresh = unique_sibling(file)
    try:
        yield fresh
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Write a text beside `file`, then rename it: `file` keeps its content until the new one is complete."""
    with written_beside(file) as fresh:
        fresh.write_text(text, "utf-8")


def failed_write(error: BaseException) -> str | None:
    """Return the reason why a file could not be written, such as a full disk; None for any other error.

    Only some libraries raise an OSError: safetensors, tokenizers and torch.save have errors of their own.
    """
    if isinstance(error, OSError):
        return None if error.errno is None else str(error)
    text = " ".join(str(error).split())
    return text[:300] if _FAILED_WRITE.search(text) else None
