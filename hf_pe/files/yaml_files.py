"""Read YAML that a person wrote, and refuse repeated keys and aliases that expand without end."""

from collections.abc import Iterator
from typing import Any

import yaml

MOST_VALUES = 100_000
"""Number of values that a text may expand to: each alias (*name) counts as many values as it repeats."""


class DuplicateKeyError(yaml.MarkedYAMLError):
    """Report that a mapping has a key twice."""


class _Loader(yaml.SafeLoader):
    """Read YAML as the safe loader does, but refuse a repeated key: its first value would be lost unnoticed."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose one mapping and compare its keys as written, before merges (`<<`) are resolved."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            written, line = (key.tag, key.value), key.start_mark.line + 1
            if written in lines:
                raise DuplicateKeyError(problem=f"'{key.value}' is given twice (lines {lines[written]} and {line}).")
            lines[written] = line
        return node


def load_yaml(text: str) -> Any:
    """Return the data in a YAML text.

    Raises:
        DuplicateKeyError: A key is given twice.
        yaml.YAMLError: The text is not valid YAML, or expands to more than `MOST_VALUES` values.
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
    except ValueError as error:  # such as an impossible date, 2024-13-45
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()


def _size_of(node: yaml.Node, sizes: dict[int, int | None]) -> int:
    """Return the number of values that a node expands to when aliases are resolved.

    Args:
        node: Composed node.
        sizes: Sizes of earlier nodes by their `id`, which this extends; None for a node that is being counted.

    Raises:
        yaml.YAMLError: There are too many values, or the node contains itself.
    """
    key = id(node)
    if key in sizes:
        size = sizes[key]
        if size is None:
            raise yaml.YAMLError("an alias (*name) lies inside what it repeats")
        return size
    sizes[key] = None
    total = 1 + sum(_size_of(child, sizes) for child in _children(node))
    if total > MOST_VALUES:
        raise yaml.YAMLError(f"its aliases (*name) expand to more than {MOST_VALUES:,} values")
    sizes[key] = total
    return total


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
