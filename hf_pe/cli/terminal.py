"""Print texts literally, show progress, and turn errors into one message instead of a traceback."""

import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import click
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from hf_pe.errors import NotFiniteError, PushError, ReloadError, UsageError, one_line, out_of_memory
from hf_pe.files.atomic import failed_write
from hf_pe.progress import listen

TRACEBACK = "HF_PE_TRACEBACK"
"""Environment variable: 1 shows tracebacks."""
FAULT = 70
"""Exit code of an error in the program itself (EX_SOFTWARE of sysexits.h)."""
RELOAD_WAY_OUT = (
    "The saved folder is not kept as a result. Give the command again (hf-pe run: with --resume, to continue after the "
    "last finished stage, or --restart); if it fails again, please report it together with the command."
)
REPEAT_S = 10
"""Seconds between two lines of progress where there is no terminal."""
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Matches characters that would control a terminal or the direction of a text, or that cannot be encoded."""


def printable(text: str) -> str:
    r"""Return `text` with its control characters written as escapes, such as \x1b."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


class PlainConsole(Console):
    """Print every text literally, since names and messages may contain brackets that rich takes for markup."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(soft_wrap=True, markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text for display with its control characters escaped; see `printable`."""
        return super().render_str(printable(text), **options)


out = PlainConsole()
err = PlainConsole(stderr=True)


class _Terminated(KeyboardInterrupt):
    """End the command as Ctrl-C does when SIGTERM arrives, which a scheduler sends before it kills a process."""


def _terminate(*_: Any) -> None:
    raise _Terminated


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def noting(state: Callable[[], str]) -> Iterator[None]:
    """Add a note about the state of the user's files to any exception that stops the block.

    Args:
        state: Returns the note.
    """
    try:
        yield
    except UsageError:  # it is raised before any work, or its message says all
        raise
    except BaseException as stop:
        stop.add_note(state())
        raise


@contextmanager
def _old_spellings_shown() -> Iterator[None]:
    """Print each warning about an old spelling in a recipe file once, as a line without a position in the code."""
    from hf_pe.plans import OldSpellingWarning

    with warnings.catch_warnings():
        show, shown = warnings.showwarning, set[str]()

        def show_line(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not issubclass(category, OldSpellingWarning):
                show(message, category, filename, lineno, file, line)
            elif str(message) not in shown:
                shown.add(str(message))
                err.print(f"Warning: {message}")

        warnings.showwarning = show_line
        yield


@contextmanager
def messages(stopped: str = "Nothing was written; give the same command to start again.") -> Iterator[None]:
    """Print any exception that ends the block as one message with its notes; silence the libraries.

    Args:
        stopped: Message where the user stops the block and no note describes the state of the files.
    """
    import transformers

    from hf_pe.quantizers.quiet import errors_only

    errors_only()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with _terminable(), _old_spellings_shown():
            yield
    except (click.exceptions.Exit, click.exceptions.Abort, click.ClickException):
        raise
    except KeyboardInterrupt as stop:
        err.print("\nStopped.", *(_notes(stop) or [stopped]))
        raise typer.Exit(143 if isinstance(stop, _Terminated) else 130) from None
    except Exception as error:
        code = _explain(error)
        raise typer.Exit(code) from None


def _explain(error: Exception) -> int:
    """Print the message of an error and return the exit code."""
    if _shows_traceback():
        err.print("".join(traceback.format_exception(error)), end="")
    if isinstance(error, UsageError):
        _print_error("Error:", str(error))
        return 2
    if isinstance(error, ImportError):
        _print_error("Error:", f"A package is missing: {one_line(error, 300)}. Install it with pip.")
        return 2
    if isinstance(error, ReloadError) and out_of_memory(error) is None:
        _print_error("Error:", str(error), RELOAD_WAY_OUT, *_notes(error))
        return 2
    if isinstance(error, PushError | NotFiniteError):
        _print_error("Stopped:", str(error), *_notes(error))
        return 1
    reason = out_of_memory(error) or failed_write(error)
    if reason is not None:
        _print_error("Stopped:", reason if reason.endswith(".") else f"{reason}.", *_notes(error))
        return 1
    return _explain_fault(error)


def _explain_fault(error: Exception) -> int:
    """Print that the program itself has failed and where its traceback is; return the exit code."""
    if _shows_traceback():
        traceback_note = "Its traceback is above"
    else:
        with tempfile.NamedTemporaryFile("w", prefix="hf_pe-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write(printable("".join(traceback.format_exception(error))))
        traceback_note = f"Its traceback is in {file.name} (hf-pe --traceback ... or {TRACEBACK}=1 prints it)"
    _print_error(
        "Error:",
        f"This is a fault of hf_pe, or of a library that it calls: {type(error).__name__}: {one_line(error, 300)}",
        f"{traceback_note}; please report it together with the command.",
        *_notes(error),
    )
    return FAULT


def _shows_traceback() -> bool:
    context = click.get_current_context(silent=True)
    option_given = context is not None and bool(context.find_root().params.get("traceback"))
    return option_given or os.environ.get(TRACEBACK, "") not in ("", "0")


def _print_error(kind: str, *sentences: str) -> None:
    err.print(Text(kind, style="red"), end=" ")
    err.print(*sentences)


def _notes(stop: BaseException) -> list[str]:
    return getattr(stop, "__notes__", [])


@contextmanager
def progress() -> Iterator[None]:
    """Show the current work and the remaining time: as a bar on a terminal, else as a line every few seconds."""
    start = time.monotonic()
    if not sys.stderr.isatty():
        with listen(progress_lines(start)):
            yield
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if not total:
                bars.console.print(f"[{time.monotonic() - start:5.0f} s] {what}")
                for old in tasks.values():
                    bars.remove_task(old)
                tasks.clear()
                return
            if what not in tasks:
                tasks[what] = bars.add_task(printable(what), total=total)
            bars.update(tasks[what], completed=done)

        with listen(show):
            yield


def progress_lines(start: float, clock: Callable[[], float] = time.monotonic) -> Callable[[str, int, int], None]:
    """Return a listener that prints a line for each new task, and its progress every `REPEAT_S` seconds.

    Args:
        start: Value of the clock when the command began.
        clock: Returns a time in seconds.
    """
    begun: dict[str, tuple[float, int]] = {}
    last = [0.0]

    def show(what: str, done: int, total: int) -> None:
        now = clock()
        if not total:
            err.print(f"[{now - start:5.0f} s] {what}")
            begun.clear()
            return
        if done == total:
            begun.pop(what, None)
            return
        since, earlier = begun.setdefault(what, (now, done))
        if now - last[0] >= REPEAT_S and done:
            timed = done - earlier
            estimate = f", about {_duration((now - since) / timed * (total - done))} left" if timed else ""
            err.print(f"[{now - start:5.0f} s]   {what}: {done} of {total}{estimate}")
            last[0] = now

    return show


def _duration(seconds: float) -> str:
    """Return a duration as "40 s", "12 min" or "2 h 5 min"."""
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
