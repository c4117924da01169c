"""Before anything goes out: secrets and private facts in the files, by name and place.

A file is read in blocks that overlap, so that memory is bounded, and each block is searched as it is written, with its
escapes undone (`\\u0068f_...`, `\\/home\\/anna`), and what stands in it in Base64.
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
"""Files whose content is words of the language: any path or name may be one of them."""
VOCABULARY_SUFFIXES = (".model", ".spm", ".tiktoken")
PUBLIC_PEOPLE = {
    "README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "CITATION.cff", "AUTHORS", "COPYING", "CONTRIBUTORS",
}  # fmt: skip
"""Files in which addresses of people are meant to be read."""
LONGEST_MATCH = 4096
"""Bytes: no pattern matches more. A block is searched with that much of what follows."""
LEFT = 128
"""Bytes before a block that patterns may look back on."""


class Finding(Frozen):
    """Something that must not go out.

    Attributes:
        file: path in the repository.
        place: where in it: "line 3", or "its name".
        kind: what it is.
        text: all of it.
    """

    file: str
    place: str
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}, {self.place}: {self.kind}: {self.shown}"

    @property
    def shown(self) -> str:
        """Return enough of the text to find it; of a secret only the beginning."""
        facts = {*FACTS, "e-mail address", "name of the user", "name of the host"}
        return self.text[:80] if self.kind in facts else f"{self.text[:6]}... ({len(self.text)} characters)"


@dataclass(frozen=True)
class Kind:
    """One kind of finding: a block that has none of `literals` has none of it.

    Attributes:
        name: as findings say it.
        literals: bytes of which one is in each finding.
        pattern: matches a finding.
        lower: literals and pattern are looked for in the text in lower case.
        accepts: whether a match counts.
        fact: a private fact, no secret; it may be part of a secret, and is not named then.
    """

    name: str
    literals: tuple[bytes, ...]
    pattern: re.Pattern[bytes]
    lower: bool = False
    accepts: Callable[[re.Match[bytes]], bool] = lambda _: True
    fact: bool = False

    def matches(self, text: bytes, lowered: bytes) -> Iterator[re.Match[bytes]]:
        """Find it in a text."""
        where = lowered if self.lower else text
        if any(literal in where for literal in self.literals):
            yield from filter(self.accepts, self.pattern.finditer(where))


def _secret(name: str, literals: str, pattern: str, lower: bool = False) -> Kind:
    return Kind(name, tuple(literals.encode().split()), re.compile(pattern.encode()), lower, is_secret_value)


def _fact(name: str, literals: str, pattern: str) -> Kind:
    return Kind(name, tuple(literals.encode().split()), re.compile(pattern.encode()), fact=True)


_SECRETS = tuple(_secret(name, *form) for name, form in SECRETS.items())
_CONTEXT = tuple(_secret(name, *form, lower=True) for name, form in CONTEXT.items())
_FACTS = tuple(_fact(name, *form) for name, form in FACTS.items())
_PATHS = tuple(kind for kind in _FACTS if kind.name not in ("home path", "private address"))
"""Facts that random bytes do not spell by chance."""
_EMAIL = _fact("e-mail address", *EMAIL)


def scan(files: Mapping[str, Path | bytes], allow: Iterable[str] = ()) -> list[Finding]:
    """Look for secrets and private facts in `files`, the path in the repository to the content.

    Secrets are looked for in everything, the names of files included; of safetensors in the header, which has the names
    of the tensors and the metadata; of other binary files (ONNX, GGUF, pictures) in whatever can be read. Archives are
    not opened. Private facts (paths, e-mail addresses, names of this user and host, private network addresses) are
    looked for where a program or a person wrote text: not in vocabularies; e-mail addresses neither in README and
    LICENSE nor in binary files.

    Args:
        files: what would go out.
        allow: texts that are no finding.

    Raises:
        UsageError: a safetensors file whose header cannot be read.
    """
    here, allowed = _kinds_of_this_machine(), set(allow)
    findings = (finding for name, content in files.items() for finding in _in_file(name, content, *here))
    return [finding for finding in findings if finding.text not in allowed]


def _in_file(name: str, content: Path | bytes, secrets: tuple[Kind, ...], names: tuple[Kind, ...]) -> Iterator[Finding]:
    """Search one file, and its name."""
    yield from _in_text(
        name,
        [name.encode("utf-8", "surrogateescape")],
        (*secrets, *_SECRETS, *_CONTEXT, *_FACTS, *names, _EMAIL),
        "its name",
    )
    blocks, binary = text_blocks(name, content)
    place = PurePosixPath(name)
    kinds = secrets + _SECRETS
    if place.name not in VOCABULARY and place.suffix not in VOCABULARY_SUFFIXES:
        kinds += _CONTEXT + (_PATHS if binary else _FACTS) + names
        kinds += () if binary or place.name in PUBLIC_PEOPLE else (_EMAIL,)
    yield from _in_text(name, blocks, kinds, "its readable bytes" if binary else None)


def _in_text(file: str, blocks: Iterable[bytes], kinds: tuple[Kind, ...], place: str | None) -> Iterator[Finding]:
    """Search a text that comes in blocks; what two views of a line show is named once."""
    named: set[tuple[str, int, bytes]] = set()
    for line, parts in _windows(blocks):
        for view in _views(parts):
            for kind, number, text in _in_view(view, kinds):
                if (kind, line + number, text) not in named:
                    named |= {(kind, line + number, text), (kind, line + number, _unescaped(text))}
                    shown = text.decode("utf-8", "replace")
                    yield Finding(file=file, place=place or f"line {line + number}", kind=kind, text=shown)


Parts = tuple[bytes, bytes, bytes]
"""What comes before a block, the block, and what follows. Findings begin in the block."""


def _in_view(view: Parts, kinds: Iterable[Kind]) -> Iterator[tuple[str, int, bytes]]:
    """Find what begins in the middle part: its kind, its line from the beginning of that part on, and its text.

    Kinds of secrets come first: a fact that is part of one is not named beside it.
    """
    text = b"".join(view)
    lowered = text.lower()
    start, end = len(view[0]), len(view[0]) + len(view[1])
    secrets: list[tuple[int, int]] = []
    for is_fact, group in itertools.groupby(kinds, lambda kind: kind.fact):
        taken = _merged(secrets)
        for kind in group:
            line, counted = 0, start
            for match in kind.matches(text, lowered):
                if is_fact and _overlaps(match.span(), taken):
                    continue
                if not is_fact:
                    secrets.append(match.span())
                if start <= match.start() < end:
                    line, counted = line + text.count(b"\n", counted, match.start()), match.start()
                    yield kind.name, line, text[match.start() : match.end()]


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return what spans cover as spans that are apart, in order."""
    apart: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if apart and start <= apart[-1][1]:
            apart[-1] = (apart[-1][0], max(apart[-1][1], end))
        else:
            apart.append((start, end))
    return apart


def _overlaps(span: tuple[int, int], apart: list[tuple[int, int]]) -> bool:
    """Return whether a span shares a place with one of `apart`, as `_merged` returns them."""
    nearest = bisect.bisect_left(apart, (span[1],)) - 1
    return nearest >= 0 and apart[nearest][1] > span[0]


def _windows(blocks: Iterable[bytes]) -> Iterator[tuple[int, Parts]]:
    """Yield the text in parts of BLOCK bytes with what is around them, and the line that each begins in."""
    before, text, line = b"", b"", 1
    for block in blocks:
        text += block
        while len(text) >= BLOCK + LONGEST_MATCH:
            yield line, (before, text[:BLOCK], text[BLOCK : BLOCK + LONGEST_MATCH])
            line += text.count(b"\n", 0, BLOCK)
            before, text = text[BLOCK - LEFT : BLOCK], text[BLOCK:]
    yield line, (before, text, b"")


def _views(parts: Parts) -> Iterator[Parts]:
    """Yield a text as it is, with its escapes undone, and what it says in Base64."""
    yield parts
    if any(b"\\" in part for part in parts):
        before, block, after = (_unescaped(part) for part in parts)
        yield before, block, after
    said = _said_in_base64(parts[1] + parts[2])
    if said:
        yield b"", said, b""


_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_CONTROLS = {b"n": b" ", b"r": b" ", b"t": b" ", b"b": b" ", b"f": b" ", b"\n": b"\\\n"}


def _unescaped(text: bytes) -> bytes:
    """Undo the escapes of JSON, Python and JavaScript; lines stay as they are, so that they can be counted."""
    return _ESCAPE.sub(_character, text)


def _character(match: re.Match[bytes]) -> bytes:
    number = match[1] or match[2]
    if number is None:
        return _CONTROLS.get(match[3], match[3])
    character = chr(int(number, 16))
    return b" " if character < " " else character.encode("utf-8", "replace")


_BASE64 = re.compile(rb"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{27,}")
"""No secret that its form tells is shorter."""


def _said_in_base64(text: bytes) -> bytes:
    """Return the texts that words of `text` say in Base64, in their lines; empty where none says one."""
    said, end = [], 0
    for word in _BASE64.finditer(text):
        decoded = _from_base64(word[0])
        if decoded is not None:
            said += [b"\n" * text.count(b"\n", end, word.start()), decoded.replace(b"\n", b" "), b" "]
            end = word.start()
    return b"".join(said)


def _from_base64(word: bytes) -> bytes | None:
    word = word[:-1] if len(word) % 4 == 1 else word + b"=" * (-len(word) % 4)
    said = binascii.a2b_base64(word.replace(b"-", b"+").replace(b"_", b"/"))
    return said if said.isascii() and not said.translate(None, PRINTABLE) else None


def _kinds_of_this_machine() -> tuple[tuple[Kind, ...], tuple[Kind, ...]]:
    """Return the kinds that are known by their value only here: secrets, and names."""
    values = secrets_here()
    secrets = [
        Kind("secret of this machine's environment", tuple(values), re.compile(b"|".join(map(re.escape, values))))
    ]
    names = [
        Kind(
            kind,
            tuple(every),
            re.compile(rb"(?<![\w-])(?:" + b"|".join(map(re.escape, every)) + rb")(?![\w-])"),
            fact=True,
        )
        for kind, every in names_here().items()
    ]
    return tuple(secrets if values else ()), tuple(names)
