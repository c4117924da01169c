"""Names of branches and tags on the Hub, which are git's."""

import re

from hf_pe.errors import UsageError

_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|^[-/]|[/.]$|^@$|(?:^|/)\.|\.lock(?:/|$)")
"""What git refuses in the name of a reference (`git check-ref-format`)."""


def require_ref(name: str, setting: str) -> None:
    """Refuse a name that no branch and no tag can have.

    Args:
        name: of the branch or tag.
        setting: which states it, for the message.

    Raises:
        UsageError: git takes no such name.
    """
    if not name or _FORBIDDEN.search(name):
        raise UsageError(
            f"{setting}: git takes no branch or tag of the name {name!r}. Expected letters, digits, '.', '_', '-' and "
            "'/', such as v1.0 or small/int8, without spaces, '..' or a '.' at the beginning of a part."
        )
