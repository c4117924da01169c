"""A new card into an old one: marked blocks are exchanged, all that people wrote or changed stays."""

import json
import re
from typing import Any

import yaml

BLOCK = re.compile(r"<!-- hf_pe:begin (\w+) -->\n.*?<!-- hf_pe:end \1 -->\n?", re.DOTALL)
OFF = re.compile(r"<!-- hf_pe:off (\w+) -->")
FRONT = re.compile(r"<!-- hf_pe:front (\{.*?\}) -->\n?")
HEAD = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


def with_memory(generated: dict[str, Any], body: str, front: dict[str, Any] | None = None) -> str:
    """A card's text with `front` (default: the generated one) as its front matter.

    A comment at its end remembers the front matter as it was generated, to tell later what a user set.
    """
    kept = json.dumps(generated, ensure_ascii=False).replace("--", "-\\u002d")
    shown = yaml.safe_dump(front or generated, sort_keys=False, allow_unicode=True)
    return f"---\n{shown}---\n\n{body}<!-- hf_pe:front {kept} -->\n"


def merge_card(new: str, old: str) -> str:
    """Exchange the marked blocks of `old` for those of `new`; keep everything else of `old`.

    A block that `old` lacks follows the block it follows in `new`; "<!-- hf_pe:off NAME -->" anywhere in `old` keeps a
    block out. An `old` without any marks is kept whole, and all blocks follow it. Front matter is merged against what
    was generated last time (three-way): values that a user changed or added stay, lists item by item.
    """
    if not old.strip():
        return new
    new_front, new_body, _ = split(new)
    old_front, old_body, generated = split(old)
    blocks = {match[1]: _ended(match[0]) for match in BLOCK.finditer(new_body)}
    off = set(OFF.findall(old_body))
    seen: set[str] = set()

    def exchange(match: re.Match[str]) -> str:
        first = match[1] not in seen
        seen.add(match[1])
        return blocks.get(match[1], "") if first and match[1] not in off else ""

    body = BLOCK.sub(exchange, old_body)
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
    return with_memory(new_front, body, _merged(new_front, old_front, generated))


def split(card: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Front matter, body, and the front matter that was generated when the card was last made."""
    card = card.replace("\r\n", "\n")
    head = HEAD.match(card)
    front = (yaml.safe_load(head[1]) or {}) if head else {}
    body = card[head.end() :].lstrip("\n") if head else card
    found = FRONT.search(body)
    generated = json.loads(found[1]) if found else {}
    return front, FRONT.sub("", body), generated


def _merged(new: dict[str, Any], old: dict[str, Any], generated: dict[str, Any]) -> dict[str, Any]:
    merged = {}
    for key in [*new, *(k for k in old if k not in new)]:
        fresh, current, made = new.get(key), old.get(key), generated.get(key)
        if key == "model-index" and fresh and current:
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


def _results(new: list[Any], old: list[Any], generated: list[Any] | None) -> list[Any]:
    """Our results anew, those that others added kept."""
    made = [r for entry in generated or [] for r in entry.get("results", [])]
    others = [r for entry in old for r in entry.get("results", []) if r not in made]
    fresh = new[0]["results"]
    return [{**new[0], "results": fresh + [r for r in others if r not in fresh]}, *new[1:]]


def _ended(block: str) -> str:
    return block if block.endswith("\n") else block + "\n"
