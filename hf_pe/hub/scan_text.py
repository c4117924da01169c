"""Readable text inside files of any kind: text in one-byte and two-byte encodings, headers of safetensors files."""

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from hf_pe.errors import UsageError

LONGEST_HEADER = 100_000_000
"""Bytes; the limit that safetensors itself sets."""


BLOCK = 1 << 20
"""Bytes that are searched at a time."""


PRINTABLE = bytes([*range(32, 127), 9, 10, 13])


_READABLE = re.compile(rb"[ -~]{8,}")
"""No path or secret is shorter; of random bytes few runs are that long."""


_LENGTH = re.compile(rb"^.(?=[/\\]|[A-Za-z]:[/\\])", re.MULTILINE)
"""Before a path: the byte that says how long it is, where that is a character."""


def text_blocks(name: str, content: Path | bytes) -> tuple[Iterator[bytes], bool]:
    """Return what there is to read in a file, and whether it is a binary file."""
    if name.endswith(".safetensors"):
        return iter([_header(name, content)]), False
    with _opened(content) as file:
        head = file.read(8192)
    if _is_utf16(head):  # each character of the texts that are looked for has a byte of zeros
        return (block.replace(b"\0", b"") for block in _read(content)), False
    if b"\0" in head:
        return _readable(_read(content)), True
    return _read(content), False


def _readable(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what can be read in binary blocks, a run of characters a line."""
    cut = b""  # a run that may go on in the next block
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
    """Return the header of a safetensors file; its tensors cannot hold a text that anyone put there by mistake."""
    with _opened(content) as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(min(size, LONGEST_HEADER))
    if not header.lstrip().startswith(b"{") or len(header) < size:
        raise UsageError(
            f"{name} is no safetensors file: its header cannot be read. It may be cut off: make or download it again."
        )
    return header
