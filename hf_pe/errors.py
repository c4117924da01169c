"""The one error users see: what was expected, what came, and the way out."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Something the user gave cannot work; the message says what was expected, what came and the way out.

    The command line prints it without a traceback.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the known word closest to `word`, or an empty string."""
    match = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean '{match[0]}'?" if match else ""


def listed(names: Iterable[str]) -> str:
    """Return the first eight names, and how many there are besides: ``a, b, ... and 3 more``."""
    every = list(names)
    return ", ".join(every[:8]) + (f" and {len(every) - 8:,} more" if len(every) > 8 else "")


class PushError(RuntimeError):
    """A push that ended early; says what the remote holds now."""


class NotFiniteError(ArithmeticError):
    """A loss became infinite or no number; says which term, in which batch, and where the last good weights are."""
