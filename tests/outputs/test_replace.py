import json
import os
import shutil
from pathlib import Path

import pytest

from hf_pe.errors import UsageError
from hf_pe.outputs import check_output, replaced, require_space
from hf_pe.outputs.marker import NEW, OLD, WHOLE, make_work_folder
from hf_pe.outputs.place import _size


def put(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file.txt").write_text(content)
    return folder


def write(output: Path, content: str, **options) -> None:
    with replaced(output, **{"overwrite": False, **options}) as fresh:
        put(fresh, content)


def content(folder: Path) -> str:
    return (folder / "file.txt").read_text()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_folders_beside_an_output_are_not_touched(tmp_path):
    for name in ("out.new", "out.old", "out.partial"):
        put(tmp_path / name, "mine")
    write(tmp_path / "out", "result")
    write(tmp_path / "out", "next", overwrite=True)
    assert names(tmp_path) == ["out", "out.new", "out.old", "out.partial"]
    assert content(tmp_path / "out") == "next"
    assert {content(tmp_path / name) for name in ("out.new", "out.old", "out.partial")} == {"mine"}


def test_what_was_there_stays_until_the_new_is_whole(tmp_path):
    write(tmp_path / "out", "old")
    with pytest.raises(OSError, match="disk full"), replaced(tmp_path / "out", overwrite=True) as fresh:
        put(fresh, "half")
        raise OSError(28, "disk full")
    assert content(tmp_path / "out") == "old"
    assert names(tmp_path) == ["out"]


def test_an_output_that_holds_something_is_refused_unless_it_is_a_result(tmp_path):
    put(tmp_path / "mine", "mine")
    with pytest.raises(UsageError, match=r"not empty.*--overwrite"):
        write(tmp_path / "mine", "result")
    with pytest.raises(UsageError, match=r"not written by hf-pe \(it has file\.txt\)"):
        write(tmp_path / "mine", "result", overwrite=True)
    assert content(tmp_path / "mine") == "mine"
    write(tmp_path / "new", "result")
    with pytest.raises(UsageError, match=r"not empty.*--overwrite"):
        write(tmp_path / "new", "result")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "result")


@pytest.mark.parametrize("place", [".", "main"])
@pytest.mark.parametrize(("report", "ours"), [('{"format_version": 0}', True), ("[1]", False), ("{", False)])
def test_a_report_of_any_version_marks_a_result(tmp_path, place, report, ours):
    put(tmp_path / "out" / place, "earlier")
    (tmp_path / "out" / place / "report.json").write_text(report)
    if not ours:
        with pytest.raises(UsageError, match="not written by hf-pe"):
            check_output(tmp_path / "out", overwrite=True)
        return
    write(tmp_path / "out", "result", overwrite=True)
    assert content(tmp_path / "out") == "result"


def test_a_folder_that_holds_results_is_no_result(tmp_path):
    for name in ("main", "nf4"):
        put(tmp_path / "all" / name, "earlier")
        (tmp_path / "all" / name / "report.json").write_text('{"format_version": 1}')
    check_output(tmp_path / "all", overwrite=True)
    (tmp_path / "all" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not written by hf-pe"):
        check_output(tmp_path / "all", overwrite=True)
    (tmp_path / "all" / "notes.txt").unlink()
    (tmp_path / "all" / "main").rename(tmp_path / "all" / "one")
    with pytest.raises(UsageError, match="not written by hf-pe"):
        check_output(tmp_path / "all", overwrite=True)


def test_files_that_someone_put_into_a_result_are_named_and_stay(tmp_path):
    write(tmp_path / "out", "result")
    write(tmp_path / "out", "next", overwrite=True)
    (tmp_path / "out" / ".DS_Store").write_text("")
    (tmp_path / "out" / "plots").mkdir()
    for name in ("notes.txt", "plots/one.png"):
        (tmp_path / "out" / name).write_text("mine")
    for act in (check_output, write):
        with pytest.raises(UsageError, match=r"did not write \(notes\.txt, plots/one\.png\).*Move them away"):
            act(tmp_path / "out", **({"overwrite": True} | ({"content": "lost"} if act is write else {})))
    assert (tmp_path / "out" / "plots" / "one.png").read_text() == "mine" and content(tmp_path / "out") == "next"
    (tmp_path / "out" / "notes.txt").unlink()
    shutil.rmtree(tmp_path / "out" / "plots")
    write(tmp_path / "out", "last", overwrite=True)
    assert content(tmp_path / "out") == "last"


def test_a_result_of_an_earlier_version_is_known_by_the_kinds_of_its_files(tmp_path):
    write(tmp_path / "out", "result")
    (tmp_path / "out" / ".hf_pe.json").write_text('{"format_version": 1, "run": ""}')
    check_output(tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "thesis.pdf").write_text("mine")
    with pytest.raises(UsageError, match=r"did not write \(thesis\.pdf\)"):
        check_output(tmp_path / "out", overwrite=True)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("model", r"is the model's own folder \("),
        ("linked/model", r"is the model's own folder \("),
        ("model/small", r"lies inside the model \("),
        ("linked/model/small", r"lies inside the model \("),
        ("rows", r"holds data\.train \("),
        ("cache/small", r"lies inside distil\.cache \("),
        ("cache", r"is distil\.cache's own folder \("),
    ],
)
def test_an_output_is_clear_of_what_is_read(tmp_path, output, message):
    write(tmp_path / "model", "weights")  # a result of its own, so that it could be replaced
    write(tmp_path / "rows", "rows")
    (tmp_path / "linked").symlink_to(tmp_path)
    inputs = {
        "the model": tmp_path / "model",
        "data.train": tmp_path / "rows" / "file.txt",
        "distil.cache": tmp_path / "cache",
    }
    with pytest.raises(UsageError, match=message):
        write(tmp_path / output, "result", overwrite=True, inputs=inputs)
    assert content(tmp_path / "model") == "weights"
    write(tmp_path / "model-small", "result", inputs=inputs)


def test_places_that_cannot_be_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(put(tmp_path / "here", "mine"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("here")
    for output, message in [
        (".", "name of its own"),
        ("..", "name of its own"),
        ("../here/..", "name of its own"),
        ("/", "name of its own"),
        ("../link", r"is a link\. Give the folder that it names: .*here"),
        ("../file", "is a file"),
        ("../file/small", "file is no folder"),
        ("../here", "is or contains the current folder of this process"),
        ("/proc", "is a mount point"),
        ("/proc/small", r"/proc (cannot be written|is read-only)"),
    ]:
        with pytest.raises(UsageError, match=message):
            write(Path(output), "result", overwrite=True)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError, match="is read-only"):
        write(tmp_path / "small", "result")
    assert names(tmp_path) == ["file", "here", "link"]


def test_parents_that_were_made_for_nothing_are_removed(tmp_path):
    with pytest.raises(OSError, match="full"), replaced(tmp_path / "a" / "b" / "out", overwrite=False):
        raise OSError("full")
    assert names(tmp_path) == []


def test_a_disk_that_is_too_small_is_refused(tmp_path):
    require_space(tmp_path / "a" / "b", 1000, "the result")
    with pytest.raises(UsageError, match=r"the result takes about 1000000000\.0 GB, and that disk has .* free"):
        require_space(tmp_path / "a" / "b", 10**18, "the result")
    assert _size(2_000_000) == "2.0 MB"


def killed(output: Path, **parts: str) -> Path:
    """What a killed process leaves beside `output`."""
    work = make_work_folder(output, "write")
    for name, text in parts.items():
        put(work / name, text)
    return work


@pytest.mark.parametrize(
    ("there", "left", "after"),
    [
        (None, {NEW: "half"}, None),
        ("old", {NEW: "half"}, "old"),
        (None, {WHOLE: "new"}, "new"),
        ("old", {WHOLE: "new"}, "old"),
        (None, {WHOLE: "new", OLD: "old"}, "new"),
        (None, {OLD: "old"}, "old"),
        ("new", {OLD: "old"}, "new"),
    ],
)
def test_the_next_start_repairs_what_a_kill_left(tmp_path, there, left, after):
    output = tmp_path / "out"
    if there:
        put(output, there)
    killed(output, **left)
    killed(tmp_path / "other", **left)
    try:
        write(output, "next")
        assert after is None
    except UsageError:
        assert content(output) == after
    assert [name.split("-")[0] for name in names(tmp_path)] == [".other.hf_pe", "out"]


def test_what_cannot_be_repaired_is_left(tmp_path):
    """Someone else made the output anew in the moment in which a killed process had moved it away."""
    put(tmp_path / "out", "by hand")
    work = killed(tmp_path / "out", whole="new", old="old")
    with pytest.raises(UsageError):
        write(tmp_path / "out", "next")
    assert [content(work / name) for name in (WHOLE, OLD)] == ["new", "old"]


def test_only_marked_folders_are_removed(tmp_path):
    named_alike = put(tmp_path / ".out.hf_pe-12345678", "mine")
    (tmp_path / ".out.hf_pe-00000000").mkdir()  # killed before its marker was written
    put(tmp_path / "target", "mine")
    linked = tmp_path / ".out.hf_pe-11111111"
    linked.symlink_to(tmp_path / "target")
    shutil.copy(killed(tmp_path / "out") / "hf_pe_work.json", tmp_path / "target")
    write(tmp_path / "out", "result")
    assert content(named_alike) == content(tmp_path / "target") == "mine"
    assert linked.is_symlink()
    assert names(tmp_path) == [".out.hf_pe-11111111", ".out.hf_pe-12345678", "out", "target"]


def test_a_failed_rename_puts_the_old_content_back(tmp_path, monkeypatch):
    write(tmp_path / "out", "old")
    rename = Path.rename

    def fail(self, target):
        if self.name == WHOLE:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output"):
        write(tmp_path / "out", "new", overwrite=True)
    assert content(tmp_path / "out") == "old"
    assert names(tmp_path) == ["out"]


def test_a_result_says_which_run_made_it(tmp_path):
    write(tmp_path / "out", "result", run="abc")
    marker = json.loads((tmp_path / "out" / ".hf_pe.json").read_text())
    assert marker == {"format_version": 1, "run": "abc", "files": ["file.txt"]}
