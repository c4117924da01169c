"""Read the cards of original models and data sets, which others wrote; a damaged one gives a warning, not an error."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from hf_pe.errors import UsageError
from hf_pe.files.front_matter import Written, line_of_front_matter, read_front_matter, split_front_matter
from hf_pe.files.own_files import is_own

LARGEST = 2_000_000
"""Size limit of a card in bytes."""
_LONGEST_SECTION = 3000


@dataclass(frozen=True)
class Card:
    """Hold a card; it is empty where there is none or it cannot be read.

    Attributes:
        data: Its front matter; every scalar is the string that was written.
        text: The text below the front matter.
        warnings: A sentence where the card cannot be read.
    """

    data: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    warnings: tuple[str, ...] = ()

    def strings(self, key: str) -> tuple[str, ...]:
        """Return the values of a key that may have one value or a list of them."""
        value = self.data.get(key)
        values = value if isinstance(value, list) else [value]
        return tuple(str(item) for item in values if isinstance(item, Written) and not item.is_null)

    def string(self, key: str) -> str | None:
        """Return the values of a key, joined by commas; None where it has none."""
        return ", ".join(self.strings(key)) or None

    def sections(self, title: str) -> str | None:
        """Return the text of the sections whose heading matches `title`; None where there is none."""
        return _sections(self.text, title)

    def citation(self) -> str | None:
        """Return the BibTeX entries of the card; None where it has none."""
        return "\n\n".join(_bibtex(self.text)) or None


def model_card(folder: Path | None, name: str) -> Card:
    """Read the card of a model: README.md of its folder, or else that on the Hub, if there is one within reach."""
    return _read(lambda: _file_of(folder, name, "model"), "The card of the original")


def dataset_card(name: str) -> Card:
    """Read the card of a data set on the Hub, if there is one within reach."""
    return _read(lambda: _file_of(None, name, "dataset"), f"The card of the data set {name}")


def _file_of(folder: Path | None, name: str, kind: str) -> Path | None:
    if folder is not None:
        path = folder / "README.md"
        return path if path.is_file() and is_own(folder, path) else None
    try:
        return Path(hf_hub_download(name, "README.md", repo_type=kind))
    except (OSError, ValueError):  # no card, no such id, or no network: the new card states less
        return None


def _read(find: Callable[[], Path | None], what: str) -> Card:
    path = find()
    if path is None:
        return Card()
    try:
        if path.stat().st_size > LARGEST:
            raise UsageError(f"it is larger than {LARGEST:,} bytes")
        card = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
        front, text = split_front_matter(card)
        return Card(read_front_matter(front, line_of_front_matter(card)), text)
    except UnicodeDecodeError:
        reason = "it is not in UTF-8"
    except (UsageError, OSError) as error:
        reason = error.strerror or "" if isinstance(error, OSError) else str(error)
    return Card(
        warnings=(
            f"{what} cannot be read: {reason}. Licence, languages, limits and citation are not taken from it. Correct "
            "the card, or state the licence yourself (license: in a recipe file).",
        )
    )


def _sections(card: str, title: str) -> str | None:
    card = re.sub(r"<!--(?:(?!<!--).)*?-->\n?", "", card, flags=re.DOTALL)
    text_and_code = re.split(r"(```.*?```)", card, flags=re.DOTALL)
    for block in range(1, len(text_and_code), 2):
        text_and_code[block] = text_and_code[block].replace("\n#", "\n\0#")  # a comment in code is no heading
    parts = re.split(r"^(#+ .*)$", "".join(text_and_code), flags=re.MULTILINE)
    bodies = [body.strip() for head, body in zip(parts[1::2], parts[2::2], strict=True) if re.search(title, head, re.I)]
    text = "\n\n".join(filter(None, bodies)).replace("\0", "")
    if len(text) > _LONGEST_SECTION:
        text = text[:_LONGEST_SECTION].rpartition("\n")[0] + "\n\n(shortened)"
    return text or None


def _bibtex(card: str) -> list[str]:
    """Return the BibTeX entries of a card: from `@kind{` to the line that ends the entry with a brace."""
    return [
        entry[0]
        for start in re.split(r"(?=@\w{1,30}\{)", card)[1:]
        if (entry := re.match(r"@\w+\{[^\n]*(?:\n(?![ \t]*\})[^\n]*)*\n[ \t]*\}", start))
    ]
