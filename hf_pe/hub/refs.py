"""Check names of branches and tags on the Hub by the rules of git."""

import re

from hf_pe.errors import UsageError

_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|^[-/]|[/.]$|^@$|(?:^|/)\.|\.lock(?:/|$)")
"""Matches what git forbids in the name of a branch or tag (`git check-ref-format`)."""


def require_ref(name: str, setting: str) -> None:
    """Refuse a name that no branch and no tag can have.

    Args:
        name: Name of the branch or tag.
        setting: Option that has this name, for the message.

    Raises:
        UsageError: Git does not allow the name.
    """
    if not name or _FORBIDDEN.search(name):
        raise UsageError(
            f"{setting}: git allows no branch or tag called {name!r}. Expected letters, digits, '.', '_', '-' and "
            "'/', such as v1.0 or small/int8, without spaces, '..' or a '.' at the beginning of a part."
        )
