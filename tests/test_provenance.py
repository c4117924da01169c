import pytest
from huggingface_hub import DatasetCard

from hf_pe import provenance


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
