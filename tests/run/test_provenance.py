import pytest
from transformers import BertModel

from hf_pe.checkpoints.source import resolve
from hf_pe.files.front_matter import read_front_matter
from hf_pe.hub import base_card as cards
from hf_pe.hub.base_card import Card
from hf_pe.run import provenance
from hf_pe.run.provenance import base_facts


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("license: mit", "mit"),
        ("license: [mit, cc-by-4.0]", "mit, cc-by-4.0"),
        ("tags: [x]", None),
        ("license: a: b", None),
        ("license: 1.10", "1.10"),
    ],
)
def test_a_data_set_on_the_hub_states_its_licence(monkeypatch, tmp_path, stated, expected):
    (tmp_path / "README.md").write_text(f"---\n{stated}\n---\n# texts\n")
    monkeypatch.setattr(cards, "hf_hub_download", lambda *_, **__: tmp_path / "README.md")
    assert provenance._data_license("someone/texts") == expected


def test_data_sets_that_say_nothing_are_left_out(monkeypatch, tmp_path):
    def missing(*_, **__):
        raise OSError("no card")

    monkeypatch.setattr(cards, "hf_hub_download", missing)
    local = tmp_path / "mine.txt"
    local.write_text("A sentence.")
    licenses = provenance._data_licenses(("builtin:pydoc", "builtin:docstrings:sklearn", str(local)), "someone/texts")
    assert licenses["builtin:pydoc"] == "PSF-2.0"
    assert "BSD" in licenses["builtin:docstrings:sklearn"]
    assert len(licenses) == 2


def test_the_licences_of_a_card_are_a_list_as_they_stand(bert_folder):
    source, model = resolve(str(bert_folder)), BertModel.from_pretrained(bert_folder)
    card = Card(read_front_matter("license: [mit, 'a, b']"))
    facts = base_facts(source, model, None, None, card)
    assert (facts.licenses, facts.license) == (("mit", "a, b"), "mit, a, b")
    assert base_facts(source, model, None, "mit", card).licenses == ()
    assert base_facts(source, model, None, None, Card(read_front_matter("license: 'a, b'"))).licenses == ()


def test_what_was_compressed_keeps_its_name_beside_what_it_derives_from(bert_folder):
    """`base_model` may be what a fine-tune began as: it is not the original."""
    source, model = resolve(str(bert_folder)), BertModel.from_pretrained(bert_folder)
    derived = base_facts(source, model, "someone/bert", None, Card())
    assert (derived.id, derived.compressed) == ("someone/bert", "tiny-bert")
    assert derived.descent == "tiny-bert, which derives from someone/bert"
    for same in (base_facts(source, model, None, None, Card()), base_facts(source, model, "tiny-bert", None, Card())):
        assert (same.id, same.compressed, same.descent) == ("tiny-bert", None, "tiny-bert")
