"""The one error users see: what was expected, what came, and the way out."""

import difflib
import errno
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

_NO_MEMORY = re.compile(
    r"\b(OutOfMemoryError|MemoryError|std::bad_alloc)\b|not enough memory|out of memory|cannot allocate memory", re.I
)
"""How torch, CUDA, Python and the system say it, also in the last words of another process."""


class UsageError(ValueError):
    """Something the user gave cannot work; the message says what was expected, what came and the way out.

    The command line prints it without a traceback.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the known word closest to `word`, or an empty string."""
    match = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean '{match[0]}'?" if match else ""


def listed(names: Iterable[str], *, layers_as_one: bool = False) -> str:
    """Return the first eight names, and how many there are besides: ``a, b, ... and 3 more``.

    Args:
        names: of anything.
        layers_as_one: they name tensors or modules; those of all layers count as one name, said with their number.
    """
    every = list(names)
    if layers_as_one:
        groups = Counter(without_numbers(name) for name in every)
        every = [f"{name} ({count} times)" if count > 1 else name for name, count in groups.items()]
    return ", ".join(every[:8]) + (f" and {len(every) - 8:,} more" if len(every) > 8 else "")


def without_numbers(name: str) -> str:
    """Return the name of a tensor or module with a star for each number, so that all layers have the same."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


class PushError(RuntimeError):
    """A push that ended early; says what the remote holds now."""


class ReloadError(RuntimeError):
    """What was saved does not load, or not as it was; says what differs."""


class NotFiniteError(ArithmeticError):
    """A loss became infinite or no number; says which term, in which batch, and where the last good weights are."""


class OutOfMemoryError(RuntimeError):
    """A process of ours had not enough memory; nothing is said about what it was to check."""


def one_line(error: BaseException, most: int | None = None) -> str:
    """Return what an error says on one line, at most so many characters of it."""
    return " ".join(str(error).split())[:most]


@contextmanager
def explained(message: Callable[[Exception], str]) -> Iterator[None]:
    """Turn whatever a library raises inside the block into one message: damaged files may raise anything.

    Args:
        message: what the user is told of an error.

    Raises:
        UsageError: the message; or the block's own, as it is. Want of memory is no fault of the files and passes.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        pass_on_memory_errors(error)
        raise UsageError(message(error)) from error


def out_of_memory(error: BaseException) -> str | None:
    """Return what to say where `error` means that memory ran out, with the way out; else None.

    Errors that were raised from one count too: libraries wrap them.
    """
    if isinstance(error, UsageError) or not _is_out_of_memory(error):
        return None
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return (
        f"There is not enough memory: {first.strip()[:200].rstrip('.')}. Take smaller batches (distil.batch_size with "
        "gradient_accumulation_steps), shorter rows (data.max_length), fewer calibration rows (data.calibration) or a "
        "dtype of 16 bits, or close what else is running."
    )


def pass_on_memory_errors(error: BaseException) -> None:
    """Raise `error` again where it means that memory ran out: then it is no reason against what was tried."""
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
