"""What plans refer to can be cited."""

import re
from pathlib import Path

import hf_pe
from hf_pe.papers import PAPERS


def test_every_reference_in_the_code_is_a_paper_that_cards_can_cite():
    sources = "".join(p.read_text("utf-8") for p in Path(hf_pe.__file__).parent.rglob("*.py") if p.stem != "papers")
    links = set(re.findall(r'"(https://arxiv\.org/abs/[\d.]+)"', sources))
    assert links
    assert links <= set(PAPERS)


def test_a_citation_names_all_that_it_should():
    paper = PAPERS["https://arxiv.org/abs/2305.14314"]
    assert paper.short == "Dettmers et al. 2023"
    assert PAPERS["https://arxiv.org/abs/1907.09682"].short == "Tung and Mori 2019"
    assert len({p.key for p in PAPERS.values()}) == len(PAPERS)
    for each in PAPERS.values():
        assert each.bibtex.count("{") == each.bibtex.count("}")
        assert each.arxiv in each.bibtex
