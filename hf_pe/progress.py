"""Reports the progress of long-running work to a listener, if there is one.

Work calls `advance`; the command line (or a test) listens. Without a listener the call costs nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, int, int], None]
_listener: ContextVar[Listener | None] = ContextVar("hf_pe_progress", default=None)


def advance(what: str, done: int, total: int) -> None:
    """Report that `done` of `total` steps of `what` are finished."""
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)


def say(what: str) -> None:
    """Report that `what` begins, where its number of steps is not known."""
    advance(what, 0, 0)


def warn(problem: str) -> None:
    """Report a problem that may make the result of the work worthless; the work goes on."""
    say(f"Warning: {problem}")


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Send every `advance` inside the block to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
