import re

import click
import pytest
import torch
import typer
from rich.table import Table
from typer.testing import CliRunner

from hf_pe.cli import app, terminal
from hf_pe.cli.options import LISTS
from hf_pe.cli.terminal import PlainConsole, messages, noting, progress, progress_lines
from hf_pe.errors import NotFiniteError, PushError, ReloadError, UsageError
from hf_pe.progress import say, warn

NAMES = ["a[bold]b", "pip install hf-pe[export]", "USER/NAME[@REVISION]", "[/red]", "C:\\models\\[x]", ":warning:"]


def words(text):
    return " ".join(text.split())


def commands():
    return typer.main.get_command(app).commands.items()


@pytest.mark.parametrize("command", [name for name, _ in commands()])
def test_help_shows_every_bracket(command):
    printed = words(CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "300"}).output)
    subject = dict(commands())[command]
    assert words(subject.help) in printed
    for parameter in subject.params:
        text = getattr(parameter, "help", None) or ""
        for mark, names in LISTS.items():
            text = text.replace(mark, ", ".join(names()))
        assert words(text) in printed


def test_the_helps_that_have_brackets_are_in_the_test_above():
    helps = " ".join(command.help for _, command in commands())
    assert "hf-pe[export]" in helps and "USER/NAME[@REVISION]" in helps


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_shown_as_they_are(name, capsys):
    console = PlainConsole(width=100)
    table = Table(name, title=name)
    table.add_row(name)
    console.print(name)
    console.print(table)
    assert capsys.readouterr().out.count(name) == 4


@pytest.mark.parametrize("name", NAMES)
def test_errors_warnings_and_progress_are_shown_as_they_are(name, capsys):
    with progress():
        say(name)
        warn(name)
    assert capsys.readouterr().err.count(name) == 2
    for error in (UsageError(name), PushError(name), NotFiniteError(name), OSError(28, name), ValueError(name)):
        with pytest.raises(typer.Exit), messages():
            raise error
        assert name in capsys.readouterr().err


def test_what_steers_a_terminal_is_written_as_an_escape(capsys):
    PlainConsole(width=100).print("a\x1b[31mred\x07 \u202egnp.exe \udcff\r\n\tb")
    assert capsys.readouterr().out == "a\\x1b[31mred\\x07 \\u202egnp.exe \\udcff\\r\n        b\n"


def test_the_version_is_said():
    printed = CliRunner().invoke(app, ["--version"])
    assert printed.exit_code == 0
    assert re.fullmatch(r"hf-pe \d+\.\d+\.\d+\S*\n", printed.output)


def test_a_fault_of_the_program_says_where_its_traceback_is(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_PE_TRACEBACK", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(typer.Exit) as stop, messages(), noting(lambda: "Nothing was written as a result."):
        raise KeyError("layers[0]")
    assert stop.value.exit_code == 70
    said = capsys.readouterr().err
    (file,) = tmp_path.glob("hf_pe-*.txt")
    assert "This is a fault of hf_pe" in said and "KeyError: 'layers[0]'" in said and str(file) in said
    assert "Nothing was written as a result." in said and "Traceback" not in said
    assert 'raise KeyError("layers[0]")' in file.read_text()


def test_a_result_that_does_not_reload_is_a_message_with_the_way_out(capsys):
    with pytest.raises(typer.Exit) as stop, messages():
        raise ReloadError("small reloads with other weights: head.weight (1 tensors).")
    said = capsys.readouterr().err
    assert stop.value.exit_code == 2 and "fault of hf_pe" not in said
    assert "other weights: head.weight" in said and "--resume" in said and "--restart" in said


@pytest.mark.parametrize("way", ["variable", "option"])
def test_the_traceback_of_a_fault_can_be_shown(way, capsys, monkeypatch):
    monkeypatch.setenv("HF_PE_TRACEBACK", "1" if way == "variable" else "0")
    root = click.Context(click.Command("hf-pe"))
    root.params["traceback"] = way == "option"
    with root, pytest.raises(typer.Exit), messages():
        raise KeyError("layers[0]")
    said = capsys.readouterr().err
    assert 'raise KeyError("layers[0]")' in said and "Its traceback is above" in said


def test_the_traceback_of_a_message_can_be_shown_too(capsys, monkeypatch):
    monkeypatch.setenv("HF_PE_TRACEBACK", "1")
    with pytest.raises(typer.Exit) as stop, messages():
        raise UsageError("config.json is damaged")
    said = capsys.readouterr().err
    assert stop.value.exit_code == 2 and 'raise UsageError("config' in said and "Error: config.json is damaged" in said


def test_a_missing_package_is_no_fault_of_the_program(capsys):
    with pytest.raises(typer.Exit) as stop, messages():
        raise ModuleNotFoundError("No module named 'torchvision'")
    assert stop.value.exit_code == 2
    assert "A package is missing: No module named 'torchvision'. Install it with pip." in capsys.readouterr().err


def test_a_stop_says_how_things_stand(capsys):
    with pytest.raises(typer.Exit) as stop, messages():
        raise KeyboardInterrupt
    assert stop.value.exit_code == 130
    assert "Stopped. Nothing was written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory: you tried"),
    ],
)
def test_out_of_memory_is_said_with_the_way_out(error, capsys):
    with pytest.raises(typer.Exit) as stop, messages(), noting(lambda: "Finished stages stay."):
        try:
            raise error
        except (MemoryError, RuntimeError) as inner:
            raise RuntimeError("the result could not be checked") from inner
    said = capsys.readouterr().err
    assert stop.value.exit_code == 1
    assert "There is not enough memory" in said and "batch_size" in said and "Finished stages stay." in said


def test_the_time_left_is_that_of_the_units_that_were_timed(capsys):
    now = [100.0]
    show = progress_lines(100.0, lambda: now[0])
    for done in range(1, 5):  # the first unit took as long as the others, before anything was said
        now[0] += 20
        show("distillation", done, 11)
    assert [line.partition("distillation: ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "1 of 11",
        "2 of 11, about 3 min left",
        "3 of 11, about 3 min left",
        "4 of 11, about 2 min left",
    ]


def test_the_time_left_of_a_resumed_training_counts_what_it_does_itself(capsys):
    now = [100.0]
    show = progress_lines(100.0, lambda: now[0])
    for done in (500, 510):
        show("distillation", done, 600)
        now[0] += 20
    assert "510 of 600, about 3 min left" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (59, "59 s"), (240, "4 min"), (7500, "2 h 5 min")])
def test_durations_are_never_zero(seconds, text):
    assert terminal._duration(seconds) == text
