"""Defines the errors that users see, and helpers for their messages: what was expected, what came, and the way out."""

import difflib
import errno
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

_NO_MEMORY = re.compile(
    r"\b(OutOfMemoryError|MemoryError|std::bad_alloc)\b|not enough memory|out of memory|cannot allocate memory", re.I
)
"""Messages of torch, CUDA, Python and the system when memory runs out, also in the output of another process."""


class UsageError(ValueError):
    """An input of the user cannot work; the message says what was expected, what came and the way out.

    The command line prints it without a traceback.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the known word closest to `word`, or an empty string."""
    match = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean '{match[0]}'?" if match else ""


def old_name_warning(old: str, new: str) -> str:
    """Return the sentence that warns of an old name of a setting, which is still read for one minor version."""
    return f"'{old}' is the old name of '{new}'; version 0.2 will refuse it."


def listed(names: Iterable[str], *, layers_as_one: bool = False) -> str:
    """Return the first eight names, and the number of further ones: ``a, b, ... and 3 more``.

    Args:
        names: of anything.
        layers_as_one: the names are those of tensors or modules, and those that differ only in the number of a layer
            are listed once, with their count.
    """
    entries = list(names)
    if layers_as_one:
        groups = Counter(without_numbers(name) for name in entries)
        entries = [f"{name} ({count} times)" if count > 1 else name for name, count in groups.items()]
    return ", ".join(entries[:8]) + (f" and {len(entries) - 8:,} more" if len(entries) > 8 else "")


def without_numbers(name: str) -> str:
    """Return the name of a tensor or module with a star for each number, so that all layers have the same."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


class PushError(RuntimeError):
    """A push ended early; the message says what the repository on the Hub has now."""


class ReloadError(RuntimeError):
    """A saved model does not load, or has other outputs than before; the message says what differs."""


class NotFiniteError(ArithmeticError):
    """A loss is infinite or NaN; the message names the term, the batch, and the folder of the last good weights."""


class OutOfMemoryError(RuntimeError):
    """A subprocess ran out of memory, so that its check has no outcome."""


def one_line(error: BaseException, most: int | None = None) -> str:
    """Return the message of an error on one line, cut to at most `most` characters."""
    return " ".join(str(error).split())[:most]


@contextmanager
def explained(message: Callable[[Exception], str]) -> Iterator[None]:
    """Turn any error that a library raises inside the block into a `UsageError`: damaged files may raise anything.

    Args:
        message: makes the message for the user from the error.

    Raises:
        UsageError: with the message; one that the block raises itself is passed on, and so are errors of memory, which
            are no fault of the files.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        pass_on_memory_errors(error)
        raise UsageError(message(error)) from error


def out_of_memory(error: BaseException) -> str | None:
    """Return a message with the way out where `error` means that memory ran out; else None.

    Errors that were raised from such an error count too, since libraries wrap them.
    """
    if isinstance(error, UsageError) or not _is_out_of_memory(error):
        return None
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return (
        f"There is not enough memory: {first.strip()[:200].rstrip('.')}. Use smaller batches (distil.batch_size with "
        "gradient_accumulation_steps), shorter rows (data.max_length), fewer calibration rows (data.calibration) or a "
        "dtype of 16 bits, or close what else is running."
    )


def pass_on_memory_errors(error: BaseException) -> None:
    """Raise `error` again where it means that memory ran out, which says nothing about the attempt that failed."""
    if out_of_memory(error) is not None:
        raise error


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | OutOfMemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)):
        return True
    return error.__cause__ is not None and _is_out_of_memory(error.__cause__)
