"""The YAML front matter of cards, read and written as its authors wrote it: `no`, `1.10` and `010` stay those words.

YAML makes false, 1.1 and 8 of them. On a card they are a language, a version and a tag: every scalar is a string here.
"""

import re
from typing import Any

import yaml

from hf_pe.errors import UsageError, one_line

_HEAD = re.compile(r"\A\s*?---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)


class Written(str):
    """A scalar as it stands in a file."""

    style: str | None = None
    """Its quotation mark, "|" or ">"; None: it is plain."""

    @property
    def is_null(self) -> bool:
        """Whether it stands for no value."""
        return self.style is None and self in ("", "~", "null", "Null", "NULL")


class _Loader(yaml.BaseLoader):
    """Read every scalar as the string that was written. Tags are ignored: no object is made but lists and dicts."""

    def construct_scalar(self, node: Any) -> Written:
        written = Written(super().construct_scalar(node))
        written.style = node.style
        return written


class _Dumper(yaml.SafeDumper):
    """Write plain scalars as plain ones, whatever YAML would read them as."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


_Dumper.add_representer(
    Written, lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:str", str(value), style=value.style)
)


def split_front_matter(card: str) -> tuple[str, str]:
    """Return the front matter of a card, without the lines around it, and the text below."""
    head = _HEAD.match(card)
    return (head[1], card[head.end() :]) if head else ("", card)


def line_of_front_matter(card: str) -> int:
    """Return the number of the line of a card in which its front matter begins, below the mark."""
    head = _HEAD.match(card)
    return 2 if head is None else card.count("\n", 0, head.start(1)) + 1


def read_front_matter(front: str, line: int = 2) -> dict[str, Any]:
    """Return its keys with their values; every scalar is the string that was written.

    Args:
        front: the lines between the marks.
        line: number of the first of them in the card, from which errors count.

    Raises:
        UsageError: it is no YAML, or has no keys.
    """
    try:
        values = yaml.load("\n" * (line - 1) + front, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"its front matter is no YAML: {one_line(error, 200)}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError("its front matter has no keys; expected lines such as `license: mit`")
    return values


def write_front_matter(values: dict[str, Any]) -> str:
    """Return the lines of these keys: scalars that were read are written as they stood."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def lines_by_key(front: str) -> dict[str, str]:
    """Return the lines of each key as they stand, with what follows them; those before the first key under "".

    Raises:
        UsageError: keys do not stand on lines of their own, or one stands twice.
    """
    root: Any = yaml.compose(front, _Loader)
    if root is None:
        return {"": front}
    keys = [(key.value, key.start_mark.index) for key, _ in root.value]
    if root.flow_style or any(start and front[start - 1] != "\n" for _, start in keys):
        raise UsageError("its front matter has keys that do not begin a line of their own")
    twice = {name for name, _ in keys if [each for each, _ in keys].count(name) > 1}
    if twice:
        raise UsageError(f"its front matter has a key twice: {', '.join(sorted(twice))}")
    ends = [*(start for _, start in keys[1:]), len(front)]
    return {"": front[: keys[0][1]]} | {name: front[start:end] for (name, start), end in zip(keys, ends, strict=True)}
