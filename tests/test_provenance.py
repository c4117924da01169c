import pytest
from huggingface_hub import DatasetCard
from transformers import BertModel

from hf_pe import provenance
from hf_pe.checkpoints import resolve
from hf_pe.provenance import base_facts


@pytest.mark.parametrize(
    "stated, expected", [("license: mit", "mit"), ("license: [mit, cc-by-4.0]", "mit, cc-by-4.0"), ("tags: [x]", None)]
)
def test_a_data_set_on_the_hub_states_its_licence(monkeypatch, stated, expected):
    monkeypatch.setattr(DatasetCard, "load", lambda name: DatasetCard(f"---\n{stated}\n---\n# {name}\n"))
    assert provenance._data_license("someone/texts") == expected


def test_data_sets_that_say_nothing_are_left_out(monkeypatch, tmp_path):
    def missing(name):
        raise OSError("no card")

    monkeypatch.setattr(DatasetCard, "load", missing)
    local = tmp_path / "mine.txt"
    local.write_text("A sentence.")
    found = provenance._data_licenses(("builtin:pydoc", "builtin:docstrings:sklearn", str(local)), "someone/texts")
    assert found["builtin:pydoc"] == "PSF-2.0"
    assert "BSD" in found["builtin:docstrings:sklearn"]
    assert len(found) == 2


def test_what_was_compressed_keeps_its_name_beside_what_it_derives_from(bert_folder):
    """`base_model` may be what a fine-tune began as: it is not the original."""
    source, model = resolve(str(bert_folder)), BertModel.from_pretrained(bert_folder)
    derived = base_facts(source, model, "someone/bert", None)
    assert (derived.id, derived.compressed) == ("someone/bert", "tiny-bert")
    assert derived.descent == "tiny-bert, which derives from someone/bert"
    for same in (base_facts(source, model, None, None), base_facts(source, model, "tiny-bert", None)):
        assert (same.id, same.compressed, same.descent) == ("tiny-bert", None, "tiny-bert")
