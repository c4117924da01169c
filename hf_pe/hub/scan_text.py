"""Extract readable text from files of any kind: one-byte and two-byte encodings, headers of safetensors files."""

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from hf_pe.errors import UsageError

LONGEST_HEADER = 100_000_000
"""Limit of a header in bytes, the same as in safetensors itself."""
BLOCK = 1 << 20
"""Bytes that are searched at a time."""
PRINTABLE = bytes([*range(32, 127), 9, 10, 13])
_READABLE = re.compile(rb"[ -~]{8,}")
"""Matches runs of characters: no path or secret is shorter, and few such runs occur in random bytes."""
_LENGTH = re.compile(rb"^.(?=[/\\]|[A-Za-z]:[/\\])", re.MULTILINE)
"""Matches the byte before a path that states its length, where that byte is a character."""


def text_blocks(name: str, content: Path | bytes) -> tuple[Iterator[bytes], bool]:
    """Return the readable text of a file in blocks, and whether it is a binary file."""
    if name.endswith(".safetensors"):
        return iter([_header(name, content)]), False
    with _opened(content) as file:
        head = file.read(8192)
    if _is_utf16(head):  # all characters of secrets and paths have a zero byte in this encoding
        return (block.replace(b"\0", b"") for block in _read(content)), False
    if b"\0" in head:
        return _readable(_read(content)), True
    return _read(content), False


def _readable(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the runs of readable characters in binary blocks, one per line."""
    cut = b""  # a run that may continue in the next block
    for block in blocks:
        text = cut + block
        cut = text[len(text.rstrip(PRINTABLE)) :][-BLOCK:]
        runs = b"\n".join([*_READABLE.findall(text[: len(text) - len(cut)]), b""])
        yield _LENGTH.sub(rb"\g<0>\n", runs)
    yield cut


def _is_utf16(head: bytes) -> bool:
    few, many = sorted(head[parity::2].count(0) / max(len(head) // 2, 1) for parity in (0, 1))
    return head.startswith((b"\xff\xfe", b"\xfe\xff")) or (many > 0.7 and few < 0.05)


def _opened(content: Path | bytes) -> io.BufferedIOBase:
    return io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")


def _read(content: Path | bytes) -> Iterator[bytes]:
    with _opened(content) as file:
        while block := file.read(BLOCK):
            yield block


def _header(name: str, content: Path | bytes) -> bytes:
    """Return the header of a safetensors file; nobody puts a text into its tensors by mistake."""
    with _opened(content) as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(min(size, LONGEST_HEADER))
    if not header.lstrip().startswith(b"{") or len(header) < size:
        raise UsageError(
            f"{name} is no valid safetensors file: its header cannot be read. Make or download the file again."
        )
    return header
