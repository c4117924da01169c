"""Merge a new card into an old one: marked blocks are replaced, everything that people wrote or changed is kept."""

import json
import re
from difflib import SequenceMatcher
from typing import Any, TypeGuard

import yaml

from hf_pe.errors import UsageError
from hf_pe.files.front_matter import (
    line_of_front_matter,
    lines_by_key,
    read_front_matter,
    split_front_matter,
    write_front_matter,
)

BLOCK = re.compile(r"<!-- hf_pe:begin (\w+) -->\n.*?<!-- hf_pe:end \1 -->\n?", re.DOTALL)
OFF = re.compile(r"<!-- hf_pe:off (\w+) -->")
FRONT = re.compile(r"<!-- hf_pe:front (\{.*?\}) -->\n?")


def with_memory(generated: dict[str, Any], body: str, front: str | None = None) -> str:
    """Return a card's text with front matter and, in a comment at its end, the generated front matter.

    The comment lets a later merge tell which values a user has set.

    Args:
        generated: The generated front matter.
        body: Text below the front matter.
        front: Lines of the front matter; by default those of `generated`.
    """
    kept = json.dumps(generated, ensure_ascii=False).replace("--", "-\\u002d")
    return f"---\n{_lines(generated) if front is None else front}---\n\n{body}<!-- hf_pe:front {kept} -->\n"


def card_text(content: bytes, where: str) -> str:
    """Decode an existing card.

    Args:
        content: Bytes of the card.
        where: Description of the card for messages.

    Raises:
        UsageError: It is not in UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unreadable(where, "it is not in UTF-8") from error


def merge_card(new: str, old: str, where: str = "README.md") -> str:
    """Replace the marked blocks of `old` by those of `new`, and keep everything else of `old`.

    A block that `old` lacks is inserted after the block that it follows in `new`; "<!-- hf_pe:off NAME -->" anywhere in
    `old` keeps a block out. An `old` without any marks is kept completely, and all blocks follow it. Front matter is
    merged three-way against the one that was generated last time: values that a user changed or added stay, lists item
    by item. The lines of keys whose value stays are unchanged, comments included, and each line keeps its own ending.

    Args:
        new: The new card.
        old: The existing card; "" where there is none.
        where: Description of `old` for messages.

    Raises:
        UsageError: The front matter of `old` cannot be read.
    """
    if not old.strip():
        return new
    new_front, new_body, fresh = split(new)
    try:
        old_front, old_body, generated = split(old)
        front = _merged_front(new_front, old_front, _lines(generated), line_of_front_matter(_plain(old)))
    except UsageError as error:
        raise _unreadable(where, str(error)) from error
    return _with_endings(with_memory(fresh, _merged_body(new_body, old_body), front), old)


def split(card: str) -> tuple[str, str, dict[str, Any]]:
    """Split a card into the lines of its front matter, its body, and the front matter that was generated for it.

    Raises:
        UsageError: The comment with the generated front matter is damaged.
    """
    front, body = split_front_matter(_plain(card))
    body = body.lstrip("\n") if front else body
    comment = FRONT.search(body)
    try:
        generated = json.loads(comment[1]) if comment else {}
    except json.JSONDecodeError as error:
        raise UsageError(
            "its comment hf_pe:front is damaged (if you remove the comment, all values count as set by you)"
        ) from error
    return front, FRONT.sub("", body), generated


def _plain(card: str) -> str:
    """Return a card without a byte order mark and with LF line endings."""
    return card.removeprefix("\ufeff").replace("\r\n", "\n")


def _unreadable(where: str, problem: str) -> UsageError:
    return UsageError(
        f"{where} is a card that cannot be merged: {problem}. Nothing was changed. Correct the card, or remove it, "
        "then try again."
    )


def _lines(values: dict[str, Any]) -> str:
    """Return typed values as lines of YAML."""
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True)) if values else ""


def _merged_body(new: str, old: str) -> str:
    blocks = {match[1]: _ended(match[0]) for match in BLOCK.finditer(new)}
    off = set(OFF.findall(old))
    old_names: set[str] = set()

    def replace(match: re.Match[str]) -> str:
        first = match[1] not in old_names
        old_names.add(match[1])
        return blocks.get(match[1], "") if first and match[1] not in off else ""

    body = BLOCK.sub(replace, old)
    before = None
    for name, text in blocks.items():
        if name not in old_names and name not in off:
            mark = f"<!-- hf_pe:end {before} -->\n"
            if before is None:
                body = f"{text}\n{body}" if old_names else f"{body.rstrip()}\n\n{text}"
            else:
                body = body.replace(mark, f"{mark}\n{text}", 1)
        if name not in off:
            before = name
    return body


def _with_endings(merged: str, old: str) -> str:
    """Return a card with the line endings (LF or CRLF) of `old`; new lines get the more frequent one."""
    lines = old.removeprefix("\ufeff").split("\n")[:-1]
    is_crlf = [line.endswith("\r") for line in lines]
    if not any(is_crlf) or all(is_crlf):
        return merged.replace("\n", "\r\n") if any(is_crlf) else merged
    new = merged.split("\n")
    endings = ["\r\n" if 2 * sum(is_crlf) > len(is_crlf) else "\n"] * len(new)
    matcher = SequenceMatcher(None, [line.removesuffix("\r") for line in lines], new, autojunk=False)
    for old_start, new_start, length in matcher.get_matching_blocks():
        endings[new_start : new_start + length] = [
            "\r\n" if crlf else "\n" for crlf in is_crlf[old_start : old_start + length]
        ]
    return "".join(line + ending for line, ending in zip(new[:-1], endings, strict=False)) + new[-1]


def _merged_front(new: str, old: str, generated: str, line: int) -> str:
    """Merge the lines of front matter; lines of keys whose value stays are unchanged.

    Args:
        new: New front matter.
        old: Existing front matter.
        generated: Front matter that was generated when `old` was made.
        line: Number of the first line of `old` in its card.
    """
    fresh, current, earlier = read_front_matter(new), read_front_matter(old, line), read_front_matter(generated)
    merged, new_lines, old_lines = _merged(fresh, current, earlier), lines_by_key(new), lines_by_key(old)
    parts = [old_lines.pop("")]
    for key, lines in (old_lines | {k: "" for k in merged if k not in old_lines}).items():
        value = merged.get(key)
        if key in current and (value is current[key] or value == current[key]):
            parts.append(lines)
        elif value is not None:
            own = new_lines[key] if value is fresh.get(key) else write_front_matter({key: value})
            parts += [own, _comments_below(lines)]
        else:
            parts.append(_comments_below(lines))
    front = "".join(parts)
    read_front_matter(front)  # raises where an anchor was removed together with a value
    return front


def _comments_below(lines: str) -> str:
    """Return the comments and empty lines between a key's lines and the next key."""
    comments = re.search(r"(?:^(?:#.*)?\n)*\Z", lines, re.MULTILINE)
    return comments[0] if comments else ""


def _merged(new: dict[str, Any], old: dict[str, Any], generated: dict[str, Any]) -> dict[str, Any]:
    merged = {}
    for key in [*new, *(k for k in old if k not in new)]:
        fresh, current, earlier = new.get(key), old.get(key), generated.get(key)
        if key == "model-index" and _is_index(fresh) and _is_index(current):
            value: Any = _results(fresh, current, earlier)
        elif current == earlier:
            value = fresh
        elif isinstance(current, list) and isinstance(fresh, list):
            earlier = earlier if isinstance(earlier, list) else []
            value = [f for f in fresh if f in current or f not in earlier] + [
                c for c in current if c not in earlier and c not in fresh
            ]
        else:
            value = current
        if value is not None:
            merged[key] = value
    return merged


def _is_index(value: Any) -> TypeGuard[list[Any]]:
    """Return whether a value has the structure of a model-index, so that results can be added."""
    entries = value if isinstance(value, list) else []
    return bool(entries) and all(isinstance(e, dict) and isinstance(e.get("results"), list) for e in entries)


def _results(new: list[Any], old: list[Any], generated: Any) -> list[Any]:
    """Return a model-index with the new results, and the results that others added to the old one."""
    earlier = [r for entry in generated if _is_index([entry]) for r in entry["results"]] if generated else []
    added = [r for entry in old for r in entry["results"] if r not in earlier]
    fresh = new[0]["results"]
    return [{**new[0], "results": fresh + [r for r in added if r not in fresh]}, *new[1:]]


def _ended(block: str) -> str:
    return block if block.endswith("\n") else block + "\n"
