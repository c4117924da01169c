"""How a result is loaded is data: names of known classes, and nothing else."""

import ast
import json

import pytest

from hf_pe.errors import UsageError
from hf_pe.loading import AUTO_CLASSES, Loading, loading_of_task
from hf_pe.report import read_report
from hf_pe.tasks import TASKS
from tests.hub.test_card import report


def written(folder, **changes):
    content = json.loads(report().model_dump_json())
    content["reload"] |= changes
    (folder / "report.json").write_text(json.dumps(content), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("loading", "lines"),
    [
        (Loading(auto_class="AutoModel"), ['model = AutoModel.from_pretrained("me/small")']),
        (
            Loading(auto_class="AutoModelForCausalLM", processor_class="AutoTokenizer", revision="nf4"),
            [
                'model = AutoModelForCausalLM.from_pretrained("me/small", revision="nf4")',
                'tokenizer = AutoTokenizer.from_pretrained("me/small", revision="nf4")',
            ],
        ),
        (
            Loading(auto_class="AutoModel", processor_class="AutoImageProcessor", plugin=True, trust_remote_code=True),
            [
                'model = AutoModel.from_pretrained("me/small", trust_remote_code=True)',
                'processor = AutoImageProcessor.from_pretrained("me/small", trust_remote_code=True)',
            ],
        ),
    ],
)
def test_the_lines_name_the_classes(loading, lines):
    classes = ", ".join(filter(None, [loading.auto_class, loading.processor_class]))
    first = ["import hf_pe.plugin"] if loading.plugin else []
    assert loading.lines("me/small").splitlines() == [*first, f"from transformers import {classes}", "", *lines]


@pytest.mark.parametrize("name", ['a"); import os #', "a\nimport os", "a\\", "\u2028é"])
def test_a_name_stays_one_string(name):
    first, model, tokenizer = ast.parse(
        Loading(auto_class="AutoModel", processor_class="AutoTokenizer").lines(name)
    ).body
    assert isinstance(first, ast.ImportFrom)
    for each in (model, tokenizer):
        assert ast.literal_eval(each.value.args[0]) == name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("auto_class", "os"),
        ("auto_class", "AutoModel, pipeline"),
        ("auto_class", "AutoModel\nimport os"),
        ("auto_class", "AutoModelOfMine"),
        ("auto_class", "AutoTokenizer"),
        ("processor_class", "os.system"),
        ("run", "import os"),
    ],
)
def test_what_is_no_known_class_is_refused(tmp_path, field, value):
    with pytest.raises(UsageError, match=rf"is not a report[\s\S]*{field}"):
        read_report(written(tmp_path, loading={"auto_class": "AutoModel", field: value}))


def test_lines_of_an_older_report_are_built_anew(tmp_path):
    old = read_report(written(tmp_path, snippet="import os; os.abort()", loading=None))
    assert old.loading == Loading(auto_class="AutoModel", processor_class="AutoTokenizer")
    assert "os" not in old.model_dump_json().split("reload")[1].split("changes")[0]


@pytest.mark.parametrize("task", [task for task in TASKS.values() if task.auto_class in AUTO_CLASSES.values()])
def test_an_older_report_of_any_task_names_its_classes(task):
    assert loading_of_task(task.pipeline_tag, plugin=False) == Loading(
        auto_class=task.auto_class, processor_class=task.processor_class
    )
