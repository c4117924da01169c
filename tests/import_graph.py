"""Which file of a package imports which other, read from the sources, and whether levels hold."""

import ast
from collections.abc import Collection, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

Graph = dict[str, set[str]]
"""The modules that each module imports, as paths without suffix: `prune/recipe`, `prune/__init__`."""
Levels = Mapping[str, Sequence[Collection[str]]]
"""By folder (`""` is the package itself), the modules and folders that lie in it, the lowest level first."""


def read_graph(root: Path) -> Graph:
    """Return the import graph of the package in the folder `root`, imports inside functions included."""
    files = {file.relative_to(root).with_suffix("").as_posix(): file for file in root.rglob("*.py")}
    return {
        module: {target for name in _imported_names(file, root) for target in _module_of(name, files)} - {module}
        for module, file in files.items()
    }


def _imported_names(file: Path, root: Path) -> set[tuple[str, ...]]:
    """Return what a file imports from its own package: dotted names, split, without the package's name."""
    folder = (root.name, *file.relative_to(root).parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {tuple(alias.name.split(".")) for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            start = folder[: len(folder) + 1 - node.level] if node.level else ()
            stem = (*start, *(node.module.split(".") if node.module else ()))
            names |= {(*stem, alias.name) for alias in node.names}
    return {name[1:] for name in names if name[0] == root.name}


def _module_of(name: tuple[str, ...], files: Collection[str]) -> set[str]:
    """Return the module that an import reads: the one of this name, or else the one that defines the name."""
    candidates = ["/".join(parts) for length in (0, 1) for parts in _as_files(name[: len(name) - length])]
    return set([module for module in candidates if module in files][:1])


def _as_files(name: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [name, (*name, "__init__")]


def circle(graph: Graph) -> list[str]:
    """Return one circle of imports, its first module also at its end; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def upward_imports(graph: Graph, levels: Levels, neighbours: Collection[tuple[str, str]] = ()) -> list[str]:
    """Return a sentence for each import of a module that does not lie on a lower level.

    Two modules are compared in the innermost folder that holds both, by their names there. An `__init__` may import all
    that lies in its folder, and nothing in its folder may import it.

    Args:
        graph: as `read_graph` returns it.
        levels: of every folder.
        neighbours: pairs (importing, imported), as paths below the package, that may lie on the same level.
    """
    height = {
        _join(folder, name): level for folder, rows in levels.items() for level, row in enumerate(rows) for name in row
    }
    wrong = []
    for module, targets in sorted(graph.items()):
        for target in sorted(targets):
            upper, lower = parting(module, target)
            if upper.endswith("__init__") or (upper, lower) in neighbours:
                continue
            without = [path for path in (upper, lower) if path not in height and not path.endswith("__init__")]
            if without:
                wrong.append(f"{module} imports {target}, but {without[0]} has no level")
            elif lower.endswith("__init__") or height[lower] >= height[upper]:
                wrong.append(f"{module} imports {target}, but {lower} is not on a lower level than {upper}")
    return wrong


def parting(module: str, target: str) -> tuple[str, str]:
    """Return the two paths just below the innermost folder that holds both modules."""
    pairs = list(zip(module.split("/"), target.split("/"), strict=False))
    shared = next(i for i, (ours, theirs) in enumerate(pairs) if ours != theirs)
    return "/".join(module.split("/")[: shared + 1]), "/".join(target.split("/")[: shared + 1])


def contents(root: Path) -> dict[str, set[str]]:
    """Return the modules and folders in each folder of a package, `__init__` left out."""
    names: dict[str, set[str]] = {}
    for file in root.rglob("*.py"):
        parts = file.relative_to(root).with_suffix("").parts
        for depth, name in enumerate(parts):
            names.setdefault("/".join(parts[:depth]), set()).update({name} - {"__init__"})
    return names


def lowest_levels(graph: Graph, folder: str, names: Collection[str]) -> list[list[str]]:
    """Return the names of a folder on the lowest levels that its imports allow, as a table to begin with."""
    below: Graph = {_join(folder, name): set() for name in names}
    for module, targets in graph.items():
        for target in targets:
            upper, lower = parting(module, target)
            if upper in below and lower in below:
                below[upper].add(lower)
    order = TopologicalSorter(below)
    order.prepare()
    rows = []
    while order.is_active():
        row = order.get_ready()
        rows.append(sorted(path.rpartition("/")[2] for path in row))
        order.done(*row)
    return rows


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
