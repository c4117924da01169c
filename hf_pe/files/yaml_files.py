"""Reads YAML that a person wrote: a key that is given twice and a text that expands without end are refused."""

from collections.abc import Iterator
from typing import Any

import yaml

MOST_VALUES = 100_000
"""Values that a text may stand for: each alias (*name) counts as much as what it repeats."""


class DuplicateKeyError(yaml.MarkedYAMLError):
    """A mapping has a key twice."""


class _Loader(yaml.SafeLoader):
    """Read YAML as the safe loader does, but refuse a key that is given twice: the first would be lost unnoticed."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose one mapping and compare its keys as they are written, before merges (`<<`) are resolved."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            written, line = (key.tag, key.value), key.start_mark.line + 1
            if written in lines:
                raise DuplicateKeyError(problem=f"'{key.value}' is given twice (lines {lines[written]} and {line}).")
            lines[written] = line
        return node


def load_yaml(text: str) -> Any:
    """Read YAML.

    Raises:
        DuplicateKeyError: a key is given twice.
        yaml.YAMLError: it is no YAML, or stands for more than `MOST_VALUES` values.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _size_of(node, {})
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except ValueError as error:  # a date such as 2024-13-45, a number that is none
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()


def _size_of(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Return for how many values a node stands, aliases resolved.

    Args:
        node: what was composed.
        known: sizes of the nodes before; None of those that are being counted.

    Raises:
        yaml.YAMLError: they are too many, or the node is inside itself.
    """
    key = id(node)
    if key in known:
        size = known[key]
        if size is None:
            raise yaml.YAMLError("an alias (*name) lies inside what it repeats")
        return size
    known[key] = None
    total = 1 + sum(_size_of(child, known) for child in _children(node))
    if total > MOST_VALUES:
        raise yaml.YAMLError(f"its aliases (*name) stand for more than {MOST_VALUES:,} values")
    known[key] = total
    return total


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
