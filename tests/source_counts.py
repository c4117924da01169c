"""Figures about sources: sizes of modules, classes and functions, and how often some names and words occur."""

import ast
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def class_lines(source: str) -> dict[str, int]:
    """Return the lines of each class, docstring included, by its name; of two with one name, the longer one's."""
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    return {node.name: _lines(node) for node in sorted(classes, key=_lines)}


def function_lines(source: str) -> list[int]:
    """Return the lines of each function and method, signature and docstring included."""
    return [_lines(node) for node in ast.walk(ast.parse(source)) if isinstance(node, FUNCTIONS)]


def _lines(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def explicit_any(source: str) -> int:
    """Return how often annotations and types say `Any`, those in quotes included."""
    tree = ast.parse(source)
    quoted = [expression for node in ast.walk(tree) for expression in _quoted_annotations(node)]
    nodes = (node for part in (tree, *quoted) for node in ast.walk(part))
    return sum(_is_any(node) for node in nodes)


def _is_any(node: ast.AST) -> bool:
    return (isinstance(node, ast.Name) and node.id == "Any") or (isinstance(node, ast.Attribute) and node.attr == "Any")


def _quoted_annotations(node: ast.AST) -> Iterator[ast.Expression]:
    """The types in quotes; of the strings inside `Annotated`, help texts do not parse."""
    for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
        for part in ast.walk(annotation) if annotation else ():
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                with suppress(SyntaxError):
                    yield ast.parse(part.value, mode="eval")


def bound_names(source: str, names: Collection[str]) -> int:
    """Return how often one of `names` is given to a variable or a parameter."""
    return sum(name in names for node in ast.walk(ast.parse(source)) for name in _bound(node))


def _bound(node: ast.AST) -> Iterator[str | None]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    if isinstance(node, ast.arg):
        yield node.arg
    if isinstance(node, ast.ExceptHandler):
        yield node.name


def words_per_thousand_lines(texts: Iterable[str], words: Collection[str]) -> float:
    """Return how often one of `words` occurs, in names with underscores too, for each 1,000 lines."""
    pattern = re.compile(rf"(?<![a-z])({'|'.join(words)})(?![a-z])", re.IGNORECASE)
    texts = list(texts)
    return 1000 * sum(len(pattern.findall(text)) for text in texts) / sum(len(text.splitlines()) for text in texts)


def not_as_listed(
    present: Mapping[str, float], listed: Mapping[str, float], limit: float = 0, slack: float = 0
) -> list[str]:
    """Return what to do where figures that may only fall are not as they are listed.

    Args:
        present: every figure, by name.
        listed: those above `limit`, as they were when they were last written down.
        limit: what needs no listing.
        slack: by how much a figure may have fallen before the list has to say so.
    """
    above = {name: figure for name, figure in present.items() if figure > limit}
    new = [f"{name}: {above[name]:g} is above {limit:g}" for name in above.keys() - listed.keys()]
    gone = [f"{name}: no longer above {limit:g}, take it off the list" for name in listed.keys() - above.keys()]
    both = above.keys() & listed.keys()
    grown = [f"{name}: grew from {listed[name]:g} to {above[name]:g}" for name in both if above[name] > listed[name]]
    fallen = [
        f"{name}: list {above[name]:g} in place of {listed[name]:g}"
        for name in both
        if listed[name] - above[name] > slack
    ]
    return sorted([*new, *gone, *grown, *fallen])
