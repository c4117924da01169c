"""Sizes of modules, classes and functions have limits, and some counts may only fall.

What is above a limit today is listed with its size. Who makes it smaller lowers the figure or takes the line off the
list, as the failed test says; a moved module is listed under its new name. No figure is ever raised.
"""

from pathlib import Path
from statistics import median

import hf_pe
from tests.source_counts import (
    bound_names,
    class_lines,
    explicit_any,
    function_lines,
    not_as_listed,
    words_per_thousand_lines,
)

ROOT = Path(hf_pe.__file__).parent
HOME = ROOT.parent
SOURCES = {
    file.relative_to(ROOT).with_suffix("").as_posix(): file.read_text("utf-8") for file in sorted(ROOT.rglob("*.py"))
}
PROSE = [HOME / "README.md", HOME / "CONTRIBUTING.md", *(HOME / "docs").rglob("*.md")]

MODULE_LINES = 300
LARGE_MODULES = {}
CLASS_LINES = 200
LARGE_CLASSES = {
    "quantize/recipe:BitsAndBytesQuantization": 206,
}
FUNCTION_LINES = 8
"""The median over all functions."""

WORDS = ("found", "told", "seen", "wanted")
"""They hide what a value is or who does what; name the value, or say the verb."""
VAGUE = {*WORDS, "here", "there", "one", "other"}
WORDS_PER_1000_LINES = 0.1
ANY = 757
VAGUE_NAMES = 2


def assert_as_listed(present, listed, limit=0, slack=0):
    wrong = not_as_listed(present, listed, limit, slack)
    assert not wrong, "\n".join(["tests/test_shape.py lists other figures:", *wrong])


def test_no_module_is_too_large_but_those_listed():
    present = {name: len(source.splitlines()) for name, source in SOURCES.items()}
    assert_as_listed(present, LARGE_MODULES, MODULE_LINES, slack=10)


def test_no_class_is_too_large_but_those_listed():
    present = {f"{name}:{kind}": n for name, source in SOURCES.items() for kind, n in class_lines(source).items()}
    assert_as_listed(present, LARGE_CLASSES, CLASS_LINES, slack=10)


def test_half_of_the_functions_are_short():
    assert median(lines for source in SOURCES.values() for lines in function_lines(source)) <= FUNCTION_LINES


def test_annotations_with_any_only_become_fewer():
    assert_as_listed({"ANY": sum(map(explicit_any, SOURCES.values()))}, {"ANY": ANY}, slack=20)


def test_vague_names_only_become_fewer():
    count = sum(bound_names(source, VAGUE) for source in SOURCES.values())
    assert_as_listed({"VAGUE_NAMES": count}, {"VAGUE_NAMES": VAGUE_NAMES}, slack=20)


def test_vague_words_only_become_fewer():
    texts = [*SOURCES.values(), *(file.read_text("utf-8") for file in PROSE)]
    rate = round(words_per_thousand_lines(texts, WORDS), 1)
    assert_as_listed({"WORDS_PER_1000_LINES": rate}, {"WORDS_PER_1000_LINES": WORDS_PER_1000_LINES}, slack=1)
