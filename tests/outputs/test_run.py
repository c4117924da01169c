import json
from pathlib import Path

import pytest

from hf_pe.errors import UsageError
from hf_pe.outputs import check_stages_folder, replaced, run_folder, run_id, stages_folder
from hf_pe.outputs.marker import make_work_folder, read_marker
from hf_pe.progress import listen


@pytest.fixture(autouse=True)
def other_runs_are_not_known(monkeypatch, tmp_path_factory):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path_factory.mktemp("cache")))


JOB = {"model": "tiny", "data": {"train": "a.txt"}, "seed": 0}


def begin(output: Path, job=JOB, **options):
    return run_folder(output, job, **{"resume": False, "restart": False, "overwrite": False, **options})


def finish_stage(folder: Path, name="1-prune") -> None:
    (folder / name).mkdir()
    (folder / name / "stage.json").write_text("{}")


def stopped(output: Path, job=JOB, *, stages=1) -> Path:
    """A run that was stopped after some stages."""
    with pytest.raises(KeyboardInterrupt), begin(output, job) as run:
        for number in range(stages):
            finish_stage(run.folder, f"{number}-prune")
        raise KeyboardInterrupt
    return run.folder


def test_a_run_leaves_its_result_alone(tmp_path):
    with begin(tmp_path / "results" / "out") as run:
        finish_stage(run.folder)
        with replaced(tmp_path / "results" / "out", overwrite=False):
            pass
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["out"]


def test_finished_stages_are_refused_resumed_or_begun_anew(tmp_path):
    folder = stopped(tmp_path / "out")
    with (
        pytest.raises(UsageError, match=r"Finished stages of this run are in .*--resume.*--restart"),
        begin(tmp_path / "out"),
    ):
        pass
    with pytest.raises(UsageError, match="exclude each other"), begin(tmp_path / "out", resume=True, restart=True):
        pass
    for options in ({"resume": True}, {"restart": True}):
        with pytest.raises(KeyboardInterrupt), begin(tmp_path / "out", **options) as run:
            assert run == (folder, False)
            assert (folder / "0-prune" / "stage.json").is_file()
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "content",
    [
        '{"kind": "run", "output": "x", "job": null}',
        '{"kind": 3, "output": []}',
        "[" * 100_000,
        "null",
        "[1]",
        "\ud800",
    ],
)
def test_a_damaged_marker_marks_nothing(content, tmp_path):
    (tmp_path / "hf_pe_work.json").write_text(content, "utf-8", "surrogatepass")
    assert read_marker(tmp_path) is None


def test_a_training_that_was_stopped_half_way_counts_as_work(tmp_path):
    with pytest.raises(KeyboardInterrupt), begin(tmp_path / "out") as run:
        (run.folder / "1-distil" / "checkpoint-100").mkdir(parents=True)
        raise KeyboardInterrupt
    assert (run.folder / "1-distil" / "checkpoint-100").is_dir()
    with pytest.raises(UsageError, match="--restart"), begin(tmp_path / "out"):
        pass


def test_a_run_that_was_stopped_before_its_first_stage_leaves_nothing(tmp_path):
    stopped(tmp_path / "out", stages=0)
    assert list(tmp_path.iterdir()) == []
    killed = make_work_folder(tmp_path / "out", "run", JOB)
    with begin(tmp_path / "out") as run:
        assert not killed.exists()
        assert run.folder != killed


def test_another_job_keeps_its_stages(tmp_path):
    folder = stopped(tmp_path / "out")
    other = {**JOB, "data": {"train": "b.txt"}}
    message = r"another run: data\.train was 'a\.txt', now 'b\.txt'"
    with pytest.raises(UsageError, match=message), begin(tmp_path / "out", other, resume=True):
        pass
    with begin(tmp_path / "out", other) as run:
        assert run.folder != folder
    assert (folder / "0-prune" / "stage.json").is_file()


def test_resume_finds_the_stages_of_another_output(tmp_path):
    full_disk, large_disk = tmp_path / "full", tmp_path / "large"
    folder = stopped(full_disk / "out")
    with begin(large_disk / "small"):  # runs side by side are no matter without --resume
        pass
    heard = []
    with (
        listen(lambda what, *_: heard.append(what)),
        begin(large_disk / "small", resume=True) as run,
    ):
        assert run.folder == folder
    assert f"made for {full_disk / 'out'}" in heard[-1]
    assert not folder.exists()

    one, two = stopped(full_disk / "out"), stopped(full_disk / "other")
    with pytest.raises(UsageError) as refused, begin(large_disk / "small", resume=True):
        pass
    assert str(one) in str(refused.value) and str(two) in str(refused.value)
    with begin(full_disk / "other", resume=True) as run:
        assert run.folder == two


def test_resume_looks_in_given_folders_where_nothing_could_be_noted(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", "/proc/none")
    folder = stopped(tmp_path / "build" / "out")
    with begin(tmp_path / "out", resume=True, elsewhere=[tmp_path / "none", tmp_path / "build"]) as run:
        assert run.folder == folder


def test_resume_without_stages_begins(tmp_path):
    heard = []
    with listen(lambda what, *_: heard.append(what)), begin(tmp_path / "out", resume=True) as run:
        assert not run.finished
    assert "no stages of an earlier run" in heard[-1]


def test_a_run_that_was_killed_after_its_last_act_is_finished(tmp_path):
    folder = stopped(tmp_path / "out")
    with replaced(tmp_path / "out", overwrite=False, run=run_id(folder)):
        pass
    with begin(tmp_path / "out", resume=True) as run:
        assert run == (folder, True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

    folder = stopped(tmp_path / "more")
    with replaced(tmp_path / "more", overwrite=False, run=run_id(folder)):
        pass
    with begin(tmp_path / "more", overwrite=True) as run:
        assert not folder.exists()


def test_a_folder_of_stages_is_checked_before_work(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file.txt").write_text("mine")
    with pytest.raises(UsageError, match="contains other files"):
        check_stages_folder(tmp_path / "mine", resume=False, restart=True)
    with pytest.raises(UsageError, match="lies inside the model"):
        check_stages_folder(
            tmp_path / "mine" / "work", resume=False, restart=False, inputs={"the model": tmp_path / "mine"}
        )
    work = tmp_path / "work"
    with stages_folder(work, resume=False, restart=False):
        finish_stage(work)
    with pytest.raises(UsageError, match=r"resume=True.*restart=True"):
        check_stages_folder(work, resume=False, restart=False)
    with pytest.raises(UsageError, match="exclude"):
        check_stages_folder(work, resume=True, restart=True)
    (work / "hf_pe.lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": 0}))
    with pytest.raises(UsageError, match="process 1 on elsewhere"):
        check_stages_folder(work, resume=True, restart=False)
    (work / "hf_pe.lock").unlink()
    with stages_folder(work, resume=True, restart=False):
        assert (work / "1-prune").is_dir()
    with stages_folder(work, resume=False, restart=True):
        assert sorted(path.name for path in work.iterdir()) == ["hf_pe.lock", "hf_pe_work.json"]
