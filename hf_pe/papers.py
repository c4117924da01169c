"""The papers that recipes follow, by the link that a plan names: what a card cites. `papers.toml` lists them."""

import tomllib
from pathlib import Path
from typing import NamedTuple


class Paper(NamedTuple):
    """Enough to cite it."""

    key: str
    authors: str
    title: str
    year: int
    arxiv: str

    @property
    def short(self) -> str:
        """Authors and year, as a text cites it."""
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
"""By link: what plans refer to can be cited."""
