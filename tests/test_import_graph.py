import pytest

from tests.import_graph import circle, contents, lowest_levels, read_graph, upward_imports

FILES = {
    "__init__.py": "",
    "low.py": "import os\nfrom pathlib import Path",
    "middle/__init__.py": "from house.middle.first import thing",
    "middle/first.py": "from house.low import name",
    "middle/second.py": "from . import first\nfrom ..low import name",
    "high.py": "def use():\n    from house.middle import thing\n    import house.middle.second",
}
LEVELS = {"": [{"low"}, {"middle"}, {"high"}], "middle": [{"first"}, {"second"}]}


@pytest.fixture
def graph_with(tmp_path):
    """The graph of the package `house`, some of its files replaced."""

    def read(changes=None):
        for path, text in {**FILES, **(changes or {})}.items():
            file = tmp_path / "house" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return read_graph(tmp_path / "house")

    return read


def test_the_graph_names_the_file_that_is_read(graph_with, tmp_path):
    assert graph_with() == {
        "__init__": set(),
        "low": set(),
        "middle/__init__": {"middle/first"},
        "middle/first": {"low"},
        "middle/second": {"middle/first", "low"},
        "high": {"middle/__init__", "middle/second"},
    }
    assert contents(tmp_path / "house") == {"": {"low", "middle", "high"}, "middle": {"first", "second"}}


def test_imports_from_lower_levels_pass(graph_with):
    assert not upward_imports(graph_with(), LEVELS)
    assert not circle(graph_with())


@pytest.mark.parametrize(
    ("file", "text", "levels"),
    [
        ("low.py", "from house import high", ("high", "low")),
        ("low.py", "import house", ("__init__", "low")),
        ("low.py", "from house import name", ("__init__", "low")),
        ("middle/first.py", "from house.middle.second import name", ("middle/second", "middle/first")),
        ("middle/first.py", "def use():\n    from .second import name", ("middle/second", "middle/first")),
        ("middle/second.py", "from house.middle import thing", ("middle/__init__", "middle/second")),
        ("middle/second.py", "from house.high import use", ("high", "middle")),
    ],
)
def test_an_import_that_is_not_downward_is_named(graph_with, file, text, levels):
    (sentence,) = upward_imports(graph_with({file: text}), LEVELS)
    assert sentence.endswith("but {} is not on a lower level than {}".format(*levels))


def test_a_module_without_a_level_is_named(graph_with):
    (sentence,) = upward_imports(graph_with({"middle/third.py": "from house.middle.first import thing"}), LEVELS)
    assert sentence == "middle/third imports middle/first, but middle/third has no level"


def test_neighbours_import_each_other_only_where_they_are_listed(graph_with):
    levels = {**LEVELS, "middle": [{"first", "second"}]}
    pair = ("middle/second", "middle/first")
    assert len(upward_imports(graph_with(), levels)) == 1
    assert not upward_imports(graph_with(), levels, {pair})
    assert upward_imports(graph_with(), levels, {pair[::-1]})


def test_a_circle_is_named_through_a_function_too(graph_with):
    assert circle(graph_with({"middle/first.py": "def use():\n    from house.middle import second"})) in (
        ["middle/first", "middle/second", "middle/first"],
        ["middle/second", "middle/first", "middle/second"],
    )


def test_the_lowest_levels_are_derived_for_each_folder(graph_with):
    assert lowest_levels(graph_with(), "", {"high", "middle", "low"}) == [["low"], ["middle"], ["high"]]
    assert lowest_levels(graph_with(), "middle", {"second", "first"}) == [["first"], ["second"]]
