import datasets
import pytest

from hf_pe.data import DataConfig, load_examples, load_general
from hf_pe.data.general import DEFAULTS, LENGTH, MOST_CHARACTERS
from hf_pe.errors import UsageError

OTHER = [f"Row {number} of another text." for number in range(30)]


@pytest.fixture
def sources(tmp_path):
    files = {"own": [f"Row {number} of the user." for number in range(30)], "other": OTHER}
    for name, lines in files.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    return {name: str(tmp_path / f"{name}.txt") for name in files}


def general(plain_text=True, **settings):
    return load_general(load_examples(DataConfig(**settings)), plain_text=plain_text)


def test_the_default_is_a_text_of_the_installation(sources):
    rows = general(train=sources["own"], max_length=1024, general_limit=50)
    assert rows.config.train == ("builtin:pydoc",) == DEFAULTS[:1]
    assert len(rows.eval) == 50 and rows.config.max_length == LENGTH
    assert rows.fingerprint


def test_the_default_is_neither_trained_nor_evaluated_on(sources):
    assert general(train="builtin:pydoc", limit=50, eval_limit=5).config.train == DEFAULTS[1:2]
    assert general(train=sources["own"], eval="builtin:pydoc", eval_limit=5).config.train == DEFAULTS[1:2]
    assert general(train=DEFAULTS, limit=50, eval_limit=5) is None


def test_it_can_be_left_out_and_other_tasks_have_none(sources):
    assert general(train=sources["own"], general="none") is None
    assert general(plain_text=False, train=sources["own"]) is None


def test_a_named_text_is_read_by_the_name_of_its_column(tmp_path, sources):
    (tmp_path / "rows.jsonl").write_text('{"sentence": "Some text of a kind.", "score": 1}\n' * 2)
    frame = {"train": str(tmp_path / "rows.jsonl"), "text": "sentence", "label": "score"}
    (tmp_path / "other.jsonl").write_text('{"sentence": "Some other text."}\n')
    with pytest.raises(UsageError, match="at least 2"):
        general(**frame)
    rows = general(train=sources["own"], general=str(tmp_path / "other.jsonl"), text="sentence")
    assert list(rows.eval["sentence"]) == ["Some other text."]


def test_rows_that_are_known_are_no_general_text(tmp_path, sources):
    (tmp_path / "both.txt").write_text("\n".join([*OTHER, "Row 1 of the user.", "Row 2 of the user."]))
    rows = general(train=sources["own"], general=str(tmp_path / "both.txt"))
    assert sorted(rows.eval["text"]) == sorted(OTHER)
    (tmp_path / "copy.txt").write_text("Row 1 of the user.\nRow 2 of the user.")
    with pytest.raises(UsageError, match=r"every row of .* is a training or an evaluation row too"):
        general(train=sources["own"], general=str(tmp_path / "copy.txt"))


def test_a_source_that_is_trained_on_is_refused(sources):
    with pytest.raises(UsageError, match=r"data\.general: .*own\.txt is in data\.train or data\.eval too"):
        general(train=sources["own"], general=(sources["other"], sources["own"]))


def test_other_tasks_read_a_named_source_with_its_labels():
    rows = datasets.Dataset.from_dict({"text": OTHER, "label": [0, 1] * 15})
    with pytest.raises(UsageError, match="no column 'label'"):
        load_general(
            load_examples((rows, DataConfig(train="rows", label="label", general="builtin:pydoc"))), plain_text=False
        )


def test_long_texts_are_cut_off(tmp_path, sources):
    (tmp_path / "long.txt").write_text(f"{'word ' * MOST_CHARACTERS}\nA short text.")
    rows = general(train=sources["own"], general=str(tmp_path / "long.txt"))
    assert sum(map(len, rows.eval["text"])) == MOST_CHARACTERS
