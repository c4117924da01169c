"""Make Markdown from values so that text from others is shown literally and cannot change the structure of a card.

Model ids, labels, column names, licences and parts of other cards are text. `escape` shows them as text wherever they
occur: in a heading, a table cell, a list or a paragraph. The card's template prints every value through it (see
`template.py`), and a value of type `Markup` is Markdown already.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Matches control characters, characters that change the direction of text, and halves of surrogate pairs."""
_CODE = re.compile(r"(?<!`)(`(?:(?!<!--)[^`|])+`)(?!`)")
"""Matches a code span without a bar, which would end a table's cell, or a comment, which could mark a block."""
_SPECIAL = re.compile(r"[\\`*\[\]|~$<]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)|(?<!\S)#")
"""Matches characters with a meaning in Markdown: underscores at the edge of a word, number signs at its beginning."""
_START = re.compile(r"( ?)(?:([-+](?=[ -]|$)|=|>|:(?=-))|(\d{1,9})([.)](?= |$)))")
"""Matches text at the beginning of a line that would start a list, a quote or the line under a heading."""
_ENTITIES = {"<": "&lt;", "&": "&amp;"}
_ITEM = re.compile(r"( *)([-*+]|\d{1,3}[.)]) +(?=\S)")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_RULE = re.compile(r" *(?=[^|]*\|)\|? *:?-+:? *(?:\| *:?-+:? *)*\|? *")
"""Matches the line below the column names of a table."""
_BOLD = re.compile(r"(\*\*|__)(?=\S)([^*_]+)(?<=\S)\1")
_LINK = re.compile(r"!?\[([^\[\]]*)\]\(([^()\s]*)\)")


def escape(value: Any) -> Markup:
    """Return Markdown that shows `value` on one line as literal text; only code spans (`` `like this` ``) stay code.

    Example:
        >>> print(escape("label_2 <b>"))
        label_2 &lt;b>
    """
    if hasattr(value, "__html__"):
        return Markup(value)
    parts = _CODE.split(_one_line(value))
    parts[::2] = [_SPECIAL.sub(lambda match: _ENTITIES.get(match[0], "\\" + match[0]), part) for part in parts[::2]]
    parts[0] = _START.sub(r"\1\3\\\2\4", parts[0], count=1) if _START.match(parts[0]) else parts[0]
    return Markup("".join(parts))


def code(value: Any) -> Markup:
    """Return a code span of `value`, or literal text where it has characters that a code span in a table cannot."""
    span = f"`{_one_line(value)}`"
    return Markup(span) if _CODE.fullmatch(span) else escape(value)


def fenced(value: Any, language: str = "") -> Markup:
    """Return a block of code that no text in `value` can end."""
    lines = _printable(str(value).rstrip("\n"), but="\n\t").replace("<!--", "<! --")  # could mark a block of the card
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", lines)), default=0))
    return Markup(f"{fence}{language}\n{lines}\n{fence}")


def quoted(value: Any) -> Markup:
    """Return a quotation of others' Markdown that keeps paragraphs, lists and code; the rest becomes literal text."""
    lines: list[str] = []
    for part, is_code in _parts(str(value).splitlines()):
        lines += fenced("\n".join(part)).split("\n") if is_code else map(_quoted_line, _without_tables(part))
    return Markup("\n".join(f"> {line}".rstrip() for line in lines))


def table_row(cells: Iterable[Any]) -> Markup:
    """Return one row of a Markdown table."""
    return Markup("| " + " | ".join(map(escape, cells)) + " |")


def link(label: Any, address: str) -> Markup:
    """Return a link, or only the label where the address does not begin with http:// or https://."""
    if not re.match(r"https?://\w", address):
        return escape(label)
    return Markup(f"[{escape(label)}]({quote(address, safe='%/:=&?~#+!$,;@')})")


def _parts(lines: Iterable[str]) -> Iterator[tuple[list[str], bool]]:
    """Split Markdown into text and blocks of code without their fences; yield the lines, and whether they are code."""
    part: list[str] = []
    fence = ""
    for line in lines:
        begins = None if fence else _FENCE.match(line)
        if begins or (fence and re.fullmatch(rf"{fence}+", line.strip())):
            yield part, bool(fence)
            part, fence = [], begins[1] if begins else ""
        else:
            part.append(line)
    if part:
        yield part, bool(fence)


def _without_tables(lines: list[str]) -> Iterator[str]:
    """Yield lines of Markdown with each row of a table as a list item: `- column: value; column: value`."""
    columns: list[str] = []
    for number, line in enumerate(lines):
        rule, first = [*lines[number + 1 : number + 3], "", ""][:2]
        if columns and "|" not in line:
            columns = []
        if columns:
            if not _RULE.fullmatch(line):
                yield _row_as_item(columns, _cells(line))
        elif "|" in line and "|" in first and _RULE.fullmatch(rule) and len(_cells(line)) == len(_cells(rule)):
            columns = _cells(line)
        else:
            yield line


def _row_as_item(columns: list[str], row: list[str]) -> str:
    pairs = zip(columns, row, strict=False)
    return "- " + "; ".join(f"{column}: {cell}" if column else cell for column, cell in pairs if cell)


def _cells(line: str) -> list[str]:
    r"""Return the cells of a line of a table; `\|` is a bar inside a cell."""
    inner = line.strip().removeprefix("|")
    cells = re.split(r"(?<!\\)\|", inner)
    return [cell.strip().replace("\\|", "|") for cell in (cells[:-1] if not cells[-1].strip() else cells)]


def _quoted_line(line: str) -> str:
    item = _ITEM.match(line)
    rest = line[item.end() :] if item else line.strip()
    rest = _LINK.sub(r"\1 (\2)", _BOLD.sub(r"\2", rest))
    return (f"{item[1][:3]}{item[2]} " if item else "") + escape(rest)


def _one_line(value: Any) -> str:
    return _printable(re.sub(r"\s+", " ", str(value)))


def _printable(text: str, but: str = "") -> str:
    return _UNPRINTABLE.sub(lambda match: match[0] if match[0] in but else "\ufffd", text)
