"""The committed cards are what the code makes of their committed reports."""

from pathlib import Path

import pytest

from hf_pe.hub import write_card
from hf_pe.report import read_report
from tests.helpers import assert_same_text

CARDS = sorted(p.parent for p in (Path(__file__).parents[2] / "model_cards").glob("*/report.json"))


def test_there_is_one():
    assert CARDS


@pytest.mark.parametrize("folder", CARDS, ids=lambda p: p.name)
def test_it_is_remade_from_its_report(folder, tmp_path):
    write_card(read_report(folder), tmp_path)
    card = (tmp_path / "README.md").read_text("utf-8")
    assert_same_text(folder / "README.md", card, f"hf-pe card model_cards/{folder.name}")
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in folder.iterdir()} - {"report.json"}
