"""Holds the papers that recipes follow and cards cite, by the links that plans name; `papers.toml` lists them."""

import tomllib
from pathlib import Path
from typing import NamedTuple


class Paper(NamedTuple):
    """Hold what a citation of a paper needs."""

    key: str
    authors: str
    title: str
    year: int
    arxiv: str

    @property
    def short(self) -> str:
        """Authors and year, as in a text: "Hinton et al. 2015"."""
        names = [name.rpartition(" ")[2] for name in self.authors.split(" and ")]
        return f"{names[0]} et al. {self.year}" if len(names) > 2 else f"{' and '.join(names)} {self.year}"

    @property
    def bibtex(self) -> str:
        """A BibTeX entry."""
        return (
            f"@article{{{self.key},\n  title = {{{self.title}}},\n  author = {{{self.authors}}},\n"
            f"  journal = {{arXiv:{self.arxiv}}},\n  year = {{{self.year}}}\n}}"
        )


def _read() -> dict[str, Paper]:
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
    return {
        f"https://arxiv.org/abs/{number}": Paper(
            entry["key"], " and ".join(entry["authors"]), entry["title"], entry["year"], number
        )
        for number, entry in table.items()
    }


PAPERS = _read()
"""The papers by the links that plans name."""
