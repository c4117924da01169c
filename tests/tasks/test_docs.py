"""The documentation of tasks is made from the tasks: a table, and one example in each class."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest
import transformers

import hf_pe
from hf_pe.tasks import TASKS, task_named
from tests.helpers import assert_same_text

PAGE = Path(hf_pe.__file__).parents[1] / "docs" / "tasks.md"
BEGIN, END = "<!-- made from TASKS -->\n\n", "\n<!-- end -->"
REMAKE = "pytest tests/tasks/test_docs.py --update-snapshots"


def row(task):
    """What the classes of tasks state, as a row of the table."""
    does = inspect.getdoc(task).split("\n")[0].partition(" (")[0].rstrip(".")
    classes = ", ".join(f"`...{ending}`" for ending in task.architectures) or f"`{task.auto_class}`"
    direction = "higher is better" if task.higher_is_better else "lower is better"
    cells = [f"`{task.name}`", does, classes, task.outputs, f"`{task.metric}`, {direction}", f"`{task.pipeline_tag}`"]
    return f"| {' | '.join(cells)} |"


def table():
    heads = ["task", "what the model does", "its class", "what a student learns from", "metric", "on the Hub"]
    return "\n".join([f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}", *map(row, TASKS.values())]) + "\n"


def test_the_table_of_tasks_is_made_from_them(request):
    text = PAGE.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    made = before + BEGIN + table() + END + rest.partition(END)[2]
    if request.config.getoption("--update-snapshots"):
        PAGE.write_text(made, "utf-8")
    assert_same_text(PAGE, made, REMAKE)


@pytest.mark.parametrize("name", TASKS)
def test_the_facts_of_every_task_fit_transformers(name):
    task = TASKS[name]
    assert task_named(name).name == name
    assert hasattr(transformers, task.processor_class)
    classes = getattr(transformers, task.auto_class)._model_mapping._model_mapping.values()
    names = [each for some in classes for each in (some if isinstance(some, (list, tuple)) else (some,))]
    for ending in task.architectures:
        assert any(each.endswith(ending) for each in names), ending


@pytest.mark.parametrize("name", TASKS)
def test_the_example_of_every_task_runs(name):
    task = TASKS[name]
    module = importlib.import_module(task.__module__)
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(task, task.__name__, module=module, globs=dict(vars(module)))
    assert example.examples, f"{task.__name__} has no example"
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
    assert not result.failed
