"""Read and write the YAML front matter of cards with every scalar as the string that its author wrote.

YAML turns `no`, `1.10` and `010` into false, 1.1 and 8. On a card they are a language, a version and a tag.
"""

import re
from typing import Any

import yaml

from hf_pe.errors import UsageError, one_line

_HEAD = re.compile(r"\A\s*?---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)


class Written(str):
    """Hold a scalar as it is written in a file."""

    style: str | None = None
    """Its quotation mark, "|" or ">"; None for a plain scalar."""

    @property
    def is_null(self) -> bool:
        """Whether it is a spelling of null."""
        return self.style is None and self in ("", "~", "null", "Null", "NULL")


class _Loader(yaml.BaseLoader):
    """Read every scalar as the string that was written; tags are ignored, so only lists and dicts are made."""

    def construct_scalar(self, node: Any) -> Written:
        written = Written(super().construct_scalar(node))
        written.style = node.style
        return written


class _Dumper(yaml.SafeDumper):
    """Write plain scalars without quotation marks, even where YAML would read them as numbers or booleans."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


_Dumper.add_representer(
    Written, lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:str", str(value), style=value.style)
)


def split_front_matter(card: str) -> tuple[str, str]:
    """Return the front matter of a card, without its `---` lines, and the text below it."""
    head = _HEAD.match(card)
    return (head[1], card[head.end() :]) if head else ("", card)


def line_of_front_matter(card: str) -> int:
    """Return the number of the first line of a card's front matter, below its `---` line."""
    head = _HEAD.match(card)
    return 2 if head is None else card.count("\n", 0, head.start(1)) + 1


def read_front_matter(front: str, line: int = 2) -> dict[str, Any]:
    """Parse front matter into its keys and values; every scalar is the string that was written.

    Args:
        front: Lines between the `---` lines.
        line: Number of the first of them in the card, for the line numbers of errors.

    Raises:
        UsageError: It is not valid YAML, or has no keys.
    """
    try:
        values = yaml.load("\n" * (line - 1) + front, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"its front matter is not valid YAML: {one_line(error, 200)}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError("its front matter has no keys; expected lines such as `license: mit`")
    return values


def write_front_matter(values: dict[str, Any]) -> str:
    """Return front matter with these keys; scalars that were read from a file keep their spelling."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def lines_by_key(front: str) -> dict[str, str]:
    """Return the unchanged lines of each key, up to the next key; lines before the first key under "".

    Raises:
        UsageError: A key does not begin a line, or occurs twice.
    """
    root: Any = yaml.compose(front, _Loader)
    if root is None:
        return {"": front}
    keys = [(key.value, key.start_mark.index) for key, _ in root.value]
    if root.flow_style or any(start and front[start - 1] != "\n" for _, start in keys):
        raise UsageError("its front matter has keys that do not begin a line of their own")
    names = [name for name, _ in keys]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise UsageError(f"its front matter has a key twice: {', '.join(sorted(repeated))}")
    ends = [*(start for _, start in keys[1:]), len(front)]
    return {"": front[: keys[0][1]]} | {name: front[start:end] for (name, start), end in zip(keys, ends, strict=True)}
