"""A sealed result notices every change, in the report and in any file; cards are made anew under the seal."""

import json

import pytest
from typer.testing import CliRunner

from hf_pe.cli import app
from hf_pe.hub.seal import Changes, changes_since_sealed, result_files
from hf_pe.progress import listen
from hf_pe.report import read_report, write_report
from hf_pe.run.folder import finish_result, remake_card
from tests.hub.test_card import report


@pytest.fixture
def folder(tmp_path):
    """A small result, sealed."""
    (tmp_path / "1_Pooling").mkdir()
    for name in ("tokenizer.json", "1_Pooling/config.json"):
        (tmp_path / name).write_text("{}", "utf-8")
    for name in (".hf_pe.json", ".README.md.hf_pe-0123abcd"):
        (tmp_path / name).write_text("{}", "utf-8")
    finish_result(report(), tmp_path)
    return tmp_path


def changes(folder):
    return changes_since_sealed(folder, result_files(folder))


def edit(folder, **values):
    content = json.loads((folder / "report.json").read_text("utf-8"))
    (folder / "report.json").write_text(json.dumps(content | values), "utf-8")


def test_a_result_is_sealed_whole(folder):
    made = read_report(folder)
    assert made.files.keys() >= {"README.md", "tokenizer.json", "1_Pooling/config.json"}
    assert not [name for name in made.files if name == "report.json" or name.startswith(".")]
    assert all(len(value) == 64 for value in (*made.files.values(), made.seal))
    assert changes(folder) == Changes(sealed=True)


def test_every_kind_of_change_is_noticed(folder):
    (folder / "1_Pooling" / "config.json").write_text("[]", "utf-8")
    (folder / "tokenizer.json").unlink()
    (folder / "more.txt").write_text("", "utf-8")
    (folder / ".gitattributes").write_text("", "utf-8")
    (folder / "README.md").write_text("mine", "utf-8")
    differences = changes(folder)
    assert differences == Changes(True, False, ("1_Pooling/config.json",), ("tokenizer.json",), ("more.txt",), True)


@pytest.mark.parametrize("values", [{"seed": 7}, {"seal": None}, {"seal": "0" * 64}, {"files": {}}])
def test_a_changed_report_is_noticed(folder, values):
    edit(folder, **values)
    assert changes(folder).report


def test_a_report_that_is_only_written_in_another_way_is_the_same(folder):
    edit(folder)
    assert not changes(folder).report


def test_a_report_without_a_seal_is_of_an_older_version(folder):
    write_report(report(), folder)
    assert changes(folder) == Changes(sealed=False)
    done = CliRunner().invoke(app, ["card", str(folder)])
    assert done.exit_code == 0 and read_report(folder).seal is None


def test_a_card_is_made_anew_under_the_seal_and_hides_no_change(folder):
    (folder / "tokenizer.json").write_text("[]", "utf-8")
    (folder / "README.md").write_text((folder / "README.md").read_text("utf-8") + "mine\n", "utf-8")
    remake_card(folder)
    assert "mine" in (folder / "README.md").read_text("utf-8")
    assert changes(folder) == Changes(True, changed=("tokenizer.json",))


def test_a_card_of_a_changed_report_is_made_but_not_sealed(folder):
    edit(folder, seed=7)
    messages = []
    with listen(lambda what, *_: messages.append(what)):
        remake_card(folder)
    assert changes(folder).report
    assert "hf-pe seal" in messages[-1]
