import time

import pytest

from hf_pe.hub import base_card as cards
from hf_pe.hub.base_card import Card, dataset_card, model_card
from tests.helpers import shared


def card_of(folder, text):
    (folder / "README.md").write_bytes(text if isinstance(text, bytes) else text.encode())
    return model_card(folder, "")


@pytest.mark.parametrize("case", ["front_matter_list", "latin1", "not_yaml"])
def test_a_broken_card_is_no_card_with_one_warning(case, tmp_path):
    card = card_of(tmp_path, shared(f"cases/base_cards/{case}.md").read_bytes())
    assert (card.data, card.text, len(card.warnings)) == ({}, "", 1)
    assert "The card of the original cannot be read" in card.warnings[0] and "are not taken from it" in card.warnings[0]
    assert str(tmp_path) not in card.warnings[0]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("language_no", {"language": ("da", "no", "sv"), "license": "mit"}),
        ("numeric_tag_license_list", {"language": ("no",), "tags": ("asr", "2024"), "license": "mit, apache-2.0"}),
        ("injecting", {"license": "other", "license_name": "x\n## Buy this"}),
    ],
)
def test_values_are_the_strings_that_were_written(case, expected, tmp_path):
    card = card_of(tmp_path, shared(f"cases/base_cards/{case}.md").read_bytes())
    assert {k: card.strings(k) if isinstance(v, tuple) else card.string(k) for k, v in expected.items()} == expected
    assert card.warnings == ()


@pytest.mark.parametrize(
    "front", ["license:", "license: ~", "license: null", "license: {a: b}", "license: [[mit]]", "other: x"]
)
def test_what_is_no_value_is_not_stated(front, tmp_path):
    assert card_of(tmp_path, f"---\n{front}\n---\n").string("license") is None
    assert card_of(tmp_path, "---\nlicense: 'null'\n---\n").string("license") == "null"


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path):
    assert card_of(tmp_path, b"\xef\xbb\xbf---\r\nlicense: mit\r\n---\r\n# m\r\n").string("license") == "mit"


def test_a_fault_in_the_front_matter_has_its_line_in_the_card(tmp_path):
    (warning,) = card_of(tmp_path, "\n---\nlicense: mit\ntitle: a: b\n---\n").warnings
    assert "line 4, column 9" in warning


def test_a_card_that_is_absurdly_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "LARGEST", 10)
    assert "larger than 10 bytes" in card_of(tmp_path, "---\nlicense: mit\n---\n").warnings[0]


def test_no_card_is_no_fault(tmp_path, monkeypatch):
    assert model_card(tmp_path, "") == Card()
    assert model_card(None, "no id of a model at all") == Card()

    def missing(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(cards, "hf_hub_download", missing)
    assert model_card(None, "someone/large") == dataset_card("someone/texts") == Card()


@pytest.mark.parametrize("part", ["<!--", "@misc{x,\n", "```\n", "\n", "# x\n", "[", "@a{"])
def test_large_cards_are_read_in_linear_time(part):
    card = Card(text=part * (400_000 // len(part)))
    start = time.monotonic()
    card.sections("limit"), card.citation()
    assert time.monotonic() - start < 5


def test_entries_to_cite_end_with_their_brace():
    text = "Cite\n```bibtex\n@misc{x,\n  title={{A} b}\n}\n```\nor @article{y,\n year=1\n  }. And @misc{never, ended"
    assert Card(text=text).citation() == "@misc{x,\n  title={{A} b}\n}\n\n@article{y,\n year=1\n  }"
