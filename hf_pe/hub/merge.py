"""A new card into an old one: marked blocks are exchanged, all that people wrote or changed stays."""

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
    """A card's text with `front` (default: the generated one) as the lines of its front matter.

    A comment at its end remembers the front matter as it was generated, to tell later what a user set.
    """
    kept = json.dumps(generated, ensure_ascii=False).replace("--", "-\\u002d")
    return f"---\n{_lines(generated) if front is None else front}---\n\n{body}<!-- hf_pe:front {kept} -->\n"


def card_text(content: bytes, where: str) -> str:
    """Return the text of a card that stands somewhere already.

    Raises:
        UsageError: it is not in UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unreadable(where, "it is not in UTF-8") from error


def merge_card(new: str, old: str, where: str = "README.md") -> str:
    """Exchange the marked blocks of `old` for those of `new`; keep everything else of `old`.

    A block that `old` lacks follows the block it follows in `new`; "<!-- hf_pe:off NAME -->" anywhere in `old` keeps a
    block out. An `old` without any marks is kept whole, and all blocks follow it. Front matter is merged against what
    was generated last time (three-way): values that a user changed or added stay, lists item by item. The lines of
    keys whose value stays are kept as they are, comments included, and each line keeps its own ending.

    Args:
        new, old: cards.
        where: `old` stands, for the message.

    Raises:
        UsageError: the front matter of `old` cannot be read.
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
    """Lines of the front matter, body, and the front matter that was generated when the card was last made.

    Raises:
        UsageError: what the card's last comment remembers is damaged.
    """
    front, body = split_front_matter(_plain(card))
    body = body.lstrip("\n") if front else body
    found = FRONT.search(body)
    try:
        generated = json.loads(found[1]) if found else {}
    except json.JSONDecodeError as error:
        raise UsageError(
            "its comment hf_pe:front is damaged (without the comment, what it had counts as yours)"
        ) from error
    return front, FRONT.sub("", body), generated


def _plain(card: str) -> str:
    """Return a card without a byte order mark, each line ended by LF."""
    return card.removeprefix("\ufeff").replace("\r\n", "\n")


def _unreadable(where: str, problem: str) -> UsageError:
    return UsageError(
        f"{where} is a card that cannot be merged with: {problem}. Nothing was changed. Correct the card, or remove "
        "it, then try again."
    )


def _lines(values: dict[str, Any]) -> str:
    """Return the lines of values with types, as YAML has to have them."""
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True)) if values else ""


def _merged_body(new: str, old: str) -> str:
    blocks = {match[1]: _ended(match[0]) for match in BLOCK.finditer(new)}
    off = set(OFF.findall(old))
    seen: set[str] = set()

    def exchange(match: re.Match[str]) -> str:
        first = match[1] not in seen
        seen.add(match[1])
        return blocks.get(match[1], "") if first and match[1] not in off else ""

    body = BLOCK.sub(exchange, old)
    before = None
    for name, text in blocks.items():
        if name not in seen and name not in off:
            mark = f"<!-- hf_pe:end {before} -->\n"
            if before is None:
                body = f"{text}\n{body}" if seen else f"{body.rstrip()}\n\n{text}"
            else:
                body = body.replace(mark, f"{mark}\n{text}", 1)
        if name not in off:
            before = name
    return body


def _with_endings(merged: str, old: str) -> str:
    """Return a card with the line endings (LF or CRLF) that `old` has; new lines have the more frequent one."""
    lines = old.removeprefix("\ufeff").split("\n")[:-1]
    windows = [line.endswith("\r") for line in lines]
    if not any(windows) or all(windows):
        return merged.replace("\n", "\r\n") if any(windows) else merged
    new = merged.split("\n")
    endings = ["\r\n" if 2 * sum(windows) > len(windows) else "\n"] * len(new)
    kept = SequenceMatcher(None, [line.removesuffix("\r") for line in lines], new, autojunk=False)
    for start, place, length in kept.get_matching_blocks():
        endings[place : place + length] = ["\r\n" if each else "\n" for each in windows[start : start + length]]
    return "".join(line + ending for line, ending in zip(new[:-1], endings, strict=False)) + new[-1]


def _merged_front(new: str, old: str, generated: str, line: int) -> str:
    """Merge the lines of front matter; those of keys whose value stays are kept to the byte.

    Args:
        new, old, generated: front matter.
        line: in which `old` begins in its card.
    """
    fresh, current, made = read_front_matter(new), read_front_matter(old, line), read_front_matter(generated)
    merged, new_lines, old_lines = _merged(fresh, current, made), lines_by_key(new), lines_by_key(old)
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
    read_front_matter(front)  # an anchor may have gone with a value
    return front


def _comments_below(lines: str) -> str:
    """Return the comments and empty lines that stand between a key's lines and the next key."""
    found = re.search(r"(?:^(?:#.*)?\n)*\Z", lines, re.MULTILINE)
    return found[0] if found else ""


def _merged(new: dict[str, Any], old: dict[str, Any], generated: dict[str, Any]) -> dict[str, Any]:
    merged = {}
    for key in [*new, *(k for k in old if k not in new)]:
        fresh, current, made = new.get(key), old.get(key), generated.get(key)
        if key == "model-index" and _is_index(fresh) and _is_index(current):
            value: Any = _results(fresh, current, made)
        elif current == made:
            value = fresh
        elif isinstance(current, list) and isinstance(fresh, list):
            made = made if isinstance(made, list) else []
            value = [f for f in fresh if f in current or f not in made] + [
                c for c in current if c not in made and c not in fresh
            ]
        else:
            value = current
        if value is not None:
            merged[key] = value
    return merged


def _is_index(value: Any) -> TypeGuard[list[Any]]:
    """Return whether a model-index has the form of one, so that results can be added."""
    entries = value if isinstance(value, list) else []
    return bool(entries) and all(isinstance(e, dict) and isinstance(e.get("results"), list) for e in entries)


def _results(new: list[Any], old: list[Any], generated: Any) -> list[Any]:
    """Our results anew, those that others added kept."""
    made = [r for entry in generated if _is_index([entry]) for r in entry["results"]] if generated else []
    others = [r for entry in old for r in entry["results"] if r not in made]
    fresh = new[0]["results"]
    return [{**new[0], "results": fresh + [r for r in others if r not in fresh]}, *new[1:]]


def _ended(block: str) -> str:
    return block if block.endswith("\n") else block + "\n"
