"""Reads texts that every installation has: Python's language reference and the docstrings of packages."""

import ast
import importlib.util
import pydoc_data.topics
import re
from collections.abc import Iterator
from pathlib import Path

import datasets

from hf_pe.errors import UsageError


def builtin_rows(name: str) -> datasets.Dataset:
    """Return the sentences of `builtin:pydoc` or `builtin:docstrings:PACKAGE`, each sentence once.

    Raises:
        UsageError: the name is unknown, or the package is not installed.
    """
    _, kind, *rest = name.split(":")
    if kind == "pydoc" and not rest:
        texts: Iterator[str] = iter(pydoc_data.topics.topics.values())
    elif kind == "docstrings" and len(rest) == 1:
        texts = _docstrings(rest[0])
    else:
        raise UsageError(f"Data: {name} is unknown. Expected builtin:pydoc or builtin:docstrings:PACKAGE.")
    return datasets.Dataset.from_dict({"text": list(dict.fromkeys(s for text in texts for s in sentences(text)))})


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of 5 to 60 words in English prose; code, tables and markup lines are left out."""
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in paragraph.splitlines()]
        if any(re.match(r">>>|\.\.\.|\.\. |[-=*~^+|]{3,}", line) for line in lines):
            continue
        flat = re.sub(r":\w+:`~?([^`<]+)[^`]*`|``?([^`]+)``?", r"\1\2", " ".join(lines)).replace("**", "")
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", flat):
            words = sentence.split()
            letters = sum(c.isalpha() or c.isspace() for c in sentence)
            if 5 <= len(words) <= 60 and letters >= 0.85 * len(sentence) and sentence[0].isupper():
                yield " ".join(words)


def _docstrings(package: str) -> Iterator[str]:
    spec = importlib.util.find_spec(package) if package.isidentifier() else None  # find_spec imports parents
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"Data: builtin:docstrings:{package}: no package '{package}' is installed.")
    for path in sorted(Path(next(iter(spec.submodule_search_locations))).rglob("*.py")):
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, ValueError):  # test files of packages may be broken on purpose
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                yield text
