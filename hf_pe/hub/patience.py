"""Send requests to the Hub, and repeat them after a broken connection."""

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
"""Seconds without data after which a request is given up."""

T = TypeVar("T")


def patiently(repo: str, what: str, call: Callable[[], T], arrived: Callable[[], T | None] | None = None) -> T:
    """Send a request, and repeat it with growing waits after a broken connection or an error of the server.

    Args:
        repo: Repository that the request is about, for messages.
        what: Description of the request, for messages.
        call: Sends the request.
        arrived: Called before another try; returns the result where the earlier try was carried out although its
            answer was lost, else None.

    Returns:
        The result of `call` or `arrived`.

    Raises:
        UsageError: The token is not valid, or has no permission.
        PushError: The Hub refuses the request, or does not answer in several tries.
    """
    for attempt in range(TRIES):
        get_session().timeout = TIMEOUT  # by default the client waits forever
        try:
            if attempt and arrived and (done := arrived()) is not None:
                return done
            return call()
        except (LocalTokenNotFoundError, PushError):
            raise
        except (HfHubHTTPError, OSError, RuntimeError, json.JSONDecodeError) as error:
            last = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
        except ValueError as error:  # the Hub refuses the metadata of a card
            raise UsageError(f"{what}: {error}") from error
        except Exception as error:  # errors of the transport have no common public base class
            if not type(error).__module__.startswith("http"):
                raise
            last = error
        _give_up_on(repo, what, last)
        progress.say(f"{what}: {_short(last)}; trying again")
        time.sleep(_wait(attempt, last))
    raise PushError(f"{what}: gave up after {TRIES} tries, last: {_short(last)}. Push again to continue from here.")


def _give_up_on(repo: str, what: str, error: BaseException) -> None:
    """Raise an error at once where another try cannot help."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        raise UsageError(f"{what}: the Hub does not accept this token (401). Log in again: `hf auth login`.") from error
    if status == 403:
        raise UsageError(
            f"{what}: this token may not write to {repo} (403). Use one with write access to it."
        ) from error
    if status in (409, 412):
        raise PushError(
            f"{what}: someone else changed {repo} meanwhile ({status}). Nothing of this push is in it; look at the "
            "repository, then push again."
        ) from error
    if status is not None and 400 <= status < 500 and status not in (408, 429):
        raise PushError(f"{what}: the Hub refused it ({status}): {_short(error)}") from error


def _wait(attempt: int, error: BaseException) -> float:
    """Return the seconds to wait: 1, 2, 4, 8, or as many as the Hub asks for."""
    retry_after = getattr(getattr(error, "response", None), "headers", {}).get("retry-after", "")
    return min(max(2.0**attempt, float(retry_after) if str(retry_after).isdigit() else 0.0), 60.0)


def _short(error: Any) -> str:
    text = one_line(error) or type(error).__name__
    return text[:200]
