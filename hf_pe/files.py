"""Files that are whole at any time, and how to recognise that one could not be written."""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BESIDE = re.compile(r"\..*\.hf_pe-[0-9a-f]{8}")
_FAILED_WRITE = re.compile(r"\(os error \d+\)|No space left|PytorchStreamWriter failed|inline_container\.cc")
"""How libraries without an OSError say it: tokenizers and safetensors (Rust), torch.save (C++)."""


def unique_sibling(path: Path) -> Path:
    """Return a hidden path beside `path` that no one else uses: `.NAME.hf_pe-` and eight random digits."""
    return path.with_name(f".{path.name[:50]}.hf_pe-{secrets.token_hex(4)}")


def is_unfinished(path: Path) -> bool:
    """Return whether `path` has a name of `unique_sibling`: what a killed process was writing, or one that lives is."""
    return _BESIDE.fullmatch(path.name) is not None


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
