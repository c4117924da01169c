r"""Search files for secrets and private facts before a push.

A file is read in overlapping blocks, so that memory is bounded. Each block is searched three times: as it is written,
with its escapes undone (`\u0068f_...`, `\/`), and with its Base64 words decoded.
"""

import binascii
import bisect
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hf_pe.hub.private_facts import EMAIL, FACTS, names_here, secrets_here
from hf_pe.hub.scan_text import BLOCK, PRINTABLE, text_blocks
from hf_pe.hub.secret_forms import CONTEXT, SECRETS, is_secret_value
from hf_pe.plans import Frozen

VOCABULARY = {"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "special_tokens_map.json"}
"""Files with words of the language, any of which may look like a path or a name."""
VOCABULARY_SUFFIXES = (".model", ".spm", ".tiktoken")
PUBLIC_PEOPLE = {
    "README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "CITATION.cff", "AUTHORS", "COPYING", "CONTRIBUTORS",
}  # fmt: skip
"""Files in which e-mail addresses are meant to be public."""
LONGEST_MATCH = 4096
"""Bytes that a pattern matches at most; a block is searched together with so many of the next one."""
LOOKBEHIND = 128
"""Bytes before a block that a pattern may look at."""


class Finding(Frozen):
    """Hold a secret or private fact that must not be published.

    Attributes:
        file: Path in the repository.
        place: Position in the file: "line 3", or "its name".
        kind: Kind of secret or fact.
        text: The complete matched text.
    """

    file: str
    place: str
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}, {self.place}: {self.kind}: {self.shown}"

    @property
    def shown(self) -> str:
        """The beginning of the text, enough to recognize it; only six characters of a secret."""
        facts = {*FACTS, "e-mail address", "name of the user", "name of the host"}
        return self.text[:80] if self.kind in facts else f"{self.text[:6]}... ({len(self.text)} characters)"


@dataclass(frozen=True)
class Kind:
    """Define how one kind of secret or fact is recognized.

    Attributes:
        name: Name of the kind in findings.
        literals: Bytes of which one is in each such text; a block without any of them is not searched.
        pattern: Matches such a text.
        lower: Whether to search the text in lower case.
        accepts: Returns whether a match counts.
        fact: Whether it is a private fact; a fact that is part of a secret is not reported separately.
    """

    name: str
    literals: tuple[bytes, ...]
    pattern: re.Pattern[bytes]
    lower: bool = False
    accepts: Callable[[re.Match[bytes]], bool] = lambda _: True
    fact: bool = False

    def matches(self, text: bytes, lowered: bytes) -> Iterator[re.Match[bytes]]:
        """Yield the matches of this kind in a text, which is also given in lower case."""
        searched = lowered if self.lower else text
        if any(literal in searched for literal in self.literals):
            yield from filter(self.accepts, self.pattern.finditer(searched))


def _secret(name: str, literals: str, pattern: str, lower: bool = False) -> Kind:
    return Kind(name, tuple(literals.encode().split()), re.compile(pattern.encode()), lower, is_secret_value)


def _fact(name: str, literals: str, pattern: str) -> Kind:
    return Kind(name, tuple(literals.encode().split()), re.compile(pattern.encode()), fact=True)


_SECRETS = tuple(_secret(name, *form) for name, form in SECRETS.items())
_CONTEXT = tuple(_secret(name, *form, lower=True) for name, form in CONTEXT.items())
_FACTS = tuple(_fact(name, *form) for name, form in FACTS.items())
_PATHS = tuple(kind for kind in _FACTS if kind.name not in ("home path", "private address"))
"""Facts that random bytes do not match by chance."""
_EMAIL = _fact("e-mail address", *EMAIL)


def scan(files: Mapping[str, Path | bytes], allow: Iterable[str] = ()) -> list[Finding]:
    """Search files for secrets and private facts.

    Secrets are searched in all files and in their names; in the header of safetensors files, which has the names of the
    tensors and the metadata; and in the readable text of other binary files (ONNX, GGUF, pictures). Archives are not
    opened. Private facts (paths, e-mail addresses, names of this user and host, private network addresses) are searched
    where a program or a person wrote text, not in vocabularies; e-mail addresses are accepted in README and LICENSE and
    not searched in binary files.

    Args:
        files: A file or its bytes, by the path in the repository.
        allow: Texts that are not reported.

    Raises:
        UsageError: The header of a safetensors file cannot be read.
    """
    machine_kinds, allowed = _kinds_of_this_machine(), set(allow)
    findings = (finding for name, content in files.items() for finding in _in_file(name, content, *machine_kinds))
    return [finding for finding in findings if finding.text not in allowed]


def _in_file(name: str, content: Path | bytes, secrets: tuple[Kind, ...], names: tuple[Kind, ...]) -> Iterator[Finding]:
    """Search the name and the content of one file."""
    yield from _in_text(
        name,
        [name.encode("utf-8", "surrogateescape")],
        (*secrets, *_SECRETS, *_CONTEXT, *_FACTS, *names, _EMAIL),
        "its name",
    )
    blocks, binary = text_blocks(name, content)
    path = PurePosixPath(name)
    kinds = secrets + _SECRETS
    if path.name not in VOCABULARY and path.suffix not in VOCABULARY_SUFFIXES:
        kinds += _CONTEXT + (_PATHS if binary else _FACTS) + names
        kinds += () if binary or path.name in PUBLIC_PEOPLE else (_EMAIL,)
    yield from _in_text(name, blocks, kinds, "its readable bytes" if binary else None)


def _in_text(file: str, blocks: Iterable[bytes], kinds: tuple[Kind, ...], place: str | None) -> Iterator[Finding]:
    """Search a text that comes in blocks; a match in two views of a line is reported once."""
    reported: set[tuple[str, int, bytes]] = set()
    for line, parts in _windows(blocks):
        for view in _views(parts):
            for kind, number, text in _in_view(view, kinds):
                if (kind, line + number, text) not in reported:
                    reported |= {(kind, line + number, text), (kind, line + number, _unescaped(text))}
                    shown = text.decode("utf-8", "replace")
                    yield Finding(file=file, place=place or f"line {line + number}", kind=kind, text=shown)


Parts = tuple[bytes, bytes, bytes]
"""Bytes before a block, the block, and bytes after it; findings begin in the block."""


def _in_view(view: Parts, kinds: Iterable[Kind]) -> Iterator[tuple[str, int, bytes]]:
    """Yield kind, line (counted from the beginning of the middle part) and text of findings in the middle part.

    Kinds of secrets come first, since a fact that is part of a secret is not reported separately.
    """
    text = b"".join(view)
    lowered = text.lower()
    start, end = len(view[0]), len(view[0]) + len(view[1])
    secrets: list[tuple[int, int]] = []
    for is_fact, group in itertools.groupby(kinds, lambda kind: kind.fact):
        secret_spans = _merged(secrets)
        for kind in group:
            line, counted = 0, start
            for match in kind.matches(text, lowered):
                if is_fact and _overlaps(match.span(), secret_spans):
                    continue
                if not is_fact:
                    secrets.append(match.span())
                if start <= match.start() < end:
                    line, counted = line + text.count(b"\n", counted, match.start()), match.start()
                    yield kind.name, line, text[match.start() : match.end()]


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the union of spans as disjoint spans, in order."""
    apart: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if apart and start <= apart[-1][1]:
            apart[-1] = (apart[-1][0], max(apart[-1][1], end))
        else:
            apart.append((start, end))
    return apart


def _overlaps(span: tuple[int, int], apart: list[tuple[int, int]]) -> bool:
    """Return whether a span overlaps with one of the disjoint spans from `_merged`."""
    nearest = bisect.bisect_left(apart, (span[1],)) - 1
    return nearest >= 0 and apart[nearest][1] > span[0]


def _windows(blocks: Iterable[bytes]) -> Iterator[tuple[int, Parts]]:
    """Yield the text in blocks of BLOCK bytes with the bytes around them, and the line that each begins in."""
    before, text, line = b"", b"", 1
    for block in blocks:
        text += block
        while len(text) >= BLOCK + LONGEST_MATCH:
            yield line, (before, text[:BLOCK], text[BLOCK : BLOCK + LONGEST_MATCH])
            line += text.count(b"\n", 0, BLOCK)
            before, text = text[BLOCK - LOOKBEHIND : BLOCK], text[BLOCK:]
    yield line, (before, text, b"")


def _views(parts: Parts) -> Iterator[Parts]:
    """Yield a text as it is, with its escapes undone, and with its Base64 words decoded."""
    yield parts
    if any(b"\\" in part for part in parts):
        before, block, after = (_unescaped(part) for part in parts)
        yield before, block, after
    decoded = _decoded_base64(parts[1] + parts[2])
    if decoded:
        yield b"", decoded, b""


_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_CONTROLS = {b"n": b" ", b"r": b" ", b"t": b" ", b"b": b" ", b"f": b" ", b"\n": b"\\\n"}


def _unescaped(text: bytes) -> bytes:
    """Undo the escapes of JSON, Python and JavaScript without adding lines, so that lines can be counted."""
    return _ESCAPE.sub(_character, text)


def _character(match: re.Match[bytes]) -> bytes:
    number = match[1] or match[2]
    if number is None:
        return _CONTROLS.get(match[3], match[3])
    character = chr(int(number, 16))
    return b" " if character < " " else character.encode("utf-8", "replace")


_BASE64 = re.compile(rb"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{27,}")
"""Matches Base64 words that are long enough for a secret."""


def _decoded_base64(text: bytes) -> bytes:
    """Return the texts in Base64 words of `text`, each in its line; empty where there is none."""
    texts, end = [], 0
    for word in _BASE64.finditer(text):
        decoded = _from_base64(word[0])
        if decoded is not None:
            texts += [b"\n" * text.count(b"\n", end, word.start()), decoded.replace(b"\n", b" "), b" "]
            end = word.start()
    return b"".join(texts)


def _from_base64(word: bytes) -> bytes | None:
    word = word[:-1] if len(word) % 4 == 1 else word + b"=" * (-len(word) % 4)
    decoded = binascii.a2b_base64(word.replace(b"-", b"+").replace(b"_", b"/"))
    return decoded if decoded.isascii() and not decoded.translate(None, PRINTABLE) else None


def _kinds_of_this_machine() -> tuple[tuple[Kind, ...], tuple[Kind, ...]]:
    """Return the kinds for the values of this machine: its secrets, and the names of user and host."""
    values = secrets_here()
    secrets = [
        Kind("secret of this machine's environment", tuple(values), re.compile(b"|".join(map(re.escape, values))))
    ]
    names = [
        Kind(
            kind,
            tuple(values_of_kind),
            re.compile(rb"(?<![\w-])(?:" + b"|".join(map(re.escape, values_of_kind)) + rb")(?![\w-])"),
            fact=True,
        )
        for kind, values_of_kind in names_here().items()
    ]
    return tuple(secrets if values else ()), tuple(names)
