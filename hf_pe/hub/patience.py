"""Requests to the Hub that are tried again after a broken connection."""

import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from huggingface_hub.utils._http import get_session

from hf_pe import progress
from hf_pe.errors import PushError, UsageError, one_line

TRIES = 4
TIMEOUT = 120.0
"""Seconds a request may stay silent."""

T = TypeVar("T")


def patiently(repo: str, what: str, call: Callable[[], T], arrived: Callable[[], T | None] | None = None) -> T:
    """Call until it works: again after a broken connection or a server's error, with growing waits.

    Args:
        repo: that the request is about, named in messages.
        what: is requested, named in messages.
        call: the request.
        arrived: asked before another try whether the one that seemed to fail was carried out.

    Raises:
        UsageError: the token is not good, or may not do this.
        PushError: the Hub refuses it, or does not answer in several tries.
    """
    for attempt in range(TRIES):
        get_session().timeout = TIMEOUT  # the client's own default is to wait for ever
        try:
            if attempt and arrived and (done := arrived()) is not None:
                return done
            return call()
        except (LocalTokenNotFoundError, PushError):
            raise
        except (HfHubHTTPError, OSError, RuntimeError, json.JSONDecodeError) as error:
            last = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
        except ValueError as error:  # what the Hub says of a card's metadata
            raise UsageError(f"{what}: {error}") from error
        except Exception as error:  # the transport's own family, which has no common public name
            if not type(error).__module__.startswith("http"):
                raise
            last = error
        _give_up_on(repo, what, last)
        progress.say(f"{what}: {_short(last)}; trying again")
        time.sleep(_wait(attempt, last))
    raise PushError(f"{what}: gave up after {TRIES} tries, last: {_short(last)}. Push again to go on from here.")


def _give_up_on(repo: str, what: str, error: BaseException) -> None:
    """Raise at once where waiting does not help."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        raise UsageError(f"{what}: the Hub does not know this token (401). Log in anew: `hf auth login`.") from error
    if status == 403:
        raise UsageError(
            f"{what}: this token may not write to {repo} (403). Use one with write access to it."
        ) from error
    if status in (409, 412):
        raise PushError(
            f"{what}: someone else changed {repo} meanwhile ({status}). Nothing of this push is in it; see "
            "what is there now, then push again."
        ) from error
    if status is not None and 400 <= status < 500 and status not in (408, 429):
        raise PushError(f"{what}: the Hub refused it ({status}): {_short(error)}") from error


def _wait(attempt: int, error: BaseException) -> float:
    """Seconds: 1, 2, 4, 8, or what the Hub asks for."""
    asked = getattr(getattr(error, "response", None), "headers", {}).get("retry-after", "")
    return min(max(2.0**attempt, float(asked) if str(asked).isdigit() else 0.0), 60.0)


def _short(error: Any) -> str:
    text = one_line(error) or type(error).__name__
    return text[:200]
