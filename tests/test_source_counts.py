import pytest

from tests.source_counts import (
    bound_names,
    class_lines,
    explicit_any,
    function_lines,
    not_as_listed,
    words_per_thousand_lines,
)

SOURCE = '''
class Outer:
    """Two classes, three functions."""

    @property
    def short(self): return 1

    class Inner:
        async def long(self):
            x = 1

            return x

def single_axis_paths(): pass
'''


def test_classes_and_functions_are_measured_wherever_they_stand():
    assert class_lines(SOURCE) == {"Outer": 11, "Inner": 5}
    assert sorted(function_lines(SOURCE)) == [1, 1, 4]
    assert class_lines("class A:\n    class B:\n        x = 1\nclass B: pass") == {"A": 3, "B": 2}


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("from typing import Any", 0),
        ("def f(a: Any, *b: list[Any]) -> Any: ...", 3),
        ("def f(a: 'dict[str, Any]') -> 'Any': ...", 2),
        ("x: typing.Any = 1", 1),
        ("def f(a: Annotated[Any, Help('Any model.')]): ...", 1),
        ("Values = dict[str, Any]", 1),
        ("x: Anything = 'Any'  # Any", 0),
    ],
)
def test_explicit_any_is_counted_in_annotations_and_types(source, count):
    assert explicit_any(source) == count


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("found = 1; print(found)", 1),
        ("def f(found, *, one=1): ...", 2),
        ("for found, other in (): pass", 2),
        ("[found for found in ()]", 1),
        ("if (found := 1): pass", 1),
        ("try: pass\nexcept ValueError as found: pass", 1),
        ("founder = self.found(one=found.other)", 0),
    ],
)
def test_names_are_counted_where_they_are_bound(source, count):
    assert bound_names(source, {"found", "one", "other"}) == count


def test_words_are_counted_by_1000_lines_of_all_texts():
    texts = ["Found it.\nfounder\n", "_found_it = 1\n# he was told, profound\n"]
    assert words_per_thousand_lines(texts, ("found", "told")) == 750


def test_figures_as_listed_pass_and_small_ones_need_no_list():
    assert not not_as_listed({"a": 301, "b": 300}, {"a": 301}, limit=300)
    assert not not_as_listed({"a": 301}, {"a": 305}, limit=300, slack=4)


@pytest.mark.parametrize(
    ("present", "sentence"),
    [
        ({"a": 310, "b": 301}, "b: 301 is above 300"),
        ({"a": 300}, "a: no longer above 300, take it off the list"),
        ({}, "a: no longer above 300, take it off the list"),
        ({"a": 311}, "a: grew from 310 to 311"),
        ({"a": 304}, "a: list 304 in place of 310"),
    ],
)
def test_a_figure_that_is_not_as_listed_is_named(present, sentence):
    assert not_as_listed(present, {"a": 310}, limit=300, slack=5) == [sentence]
