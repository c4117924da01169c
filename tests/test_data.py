import datasets
import pytest

from hf_pe.data import DataConfig, load_examples, sentences
from hf_pe.errors import UsageError
from tests.helpers import TEXTS


def write(path, text):
    path.write_text(text, "utf-8")
    return str(path)


def test_the_held_out_part_is_never_trained_on():
    found = load_examples(TEXTS)
    assert len(found.eval) == round(len(TEXTS) * 0.1)
    assert not set(found.eval["text"]) & set(found.train["text"])
    assert set(found.eval["text"]) | set(found.train["text"]) == set(TEXTS)


def test_the_split_and_its_fingerprint_are_the_same_each_time():
    assert load_examples(TEXTS).fingerprint == load_examples(TEXTS).fingerprint
    assert load_examples(TEXTS).fingerprint != load_examples(TEXTS[1:]).fingerprint


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\nThe dog runs.,1\nThe cat sleeps.,0\n"),
        ("a.tsv", 'text\tlabel\nThe "dog runs.\t1\nThe cat sleeps.\t0\n'),
        ("a.jsonl", '{"text": "The dog runs.", "label": 1}\n{"text": "The cat sleeps.", "label": 0}\n'),
        ("a.json", '[{"text": "The dog runs.", "label": 1}, {"text": "The cat sleeps.", "label": 0}]'),
    ],
)
def test_formats(tmp_path, name, content):
    path = write(tmp_path / name, content)
    found = load_examples(DataConfig(train=path, eval=path, label="label"))
    assert found.train["label"] == [1, 0]
    assert found.train["text"][1] == "The cat sleeps."


def test_text_lines_with_the_label_in_front(tmp_path):
    path = tmp_path / "stsa.train"
    path.write_bytes("1 a caf\xe9 scene\n0 dull\n".encode("latin-1"))
    found = load_examples(
        DataConfig(train=str(path), eval=str(path), label="label", label_first=True, encoding="latin-1")
    )
    assert found.train["text"] == ["a café scene", "dull"]
    assert found.train["label"] == ["1", "0"]


def test_several_sources_limits_and_empty_rows(tmp_path):
    one = write(tmp_path / "one.csv", "text\nThe dog runs.\n\n  \nThe dog runs.\n")
    two = write(tmp_path / "two.csv", "text\nThe cat sleeps.\nThe bird sings.\n")
    found = load_examples(DataConfig(train=(one, two), eval=two, limit=2, eval_limit=1))
    assert found.train["text"] == ["The dog runs.", "The cat sleeps."]
    assert found.eval["text"] == ["The cat sleeps."]


def test_builtin_prose_is_prose():
    found = load_examples("builtin:pydoc")
    assert len(found.train) > 1000
    assert all(5 <= len(text.split()) <= 60 for text in found.train["text"])


def test_sentences_leave_code_and_tables_out():
    text = (
        "This is a first sentence of prose. And here is another one!\n\n>>> print(1)\n1\n\n==== ====\na b\n==== ====\n"
    )
    assert list(sentences(text)) == ["This is a first sentence of prose.", "And here is another one!"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"train": "no/such/file.csv"}, "no/such/file.csv does not exist"),
        ({"train": "builtin:nothing"}, "Expected builtin:pydoc"),
        ({"train": "builtin:docstrings:no_such_package"}, "no package 'no_such_package'"),
        ({"train": []}, "at least one source"),
    ],
)
def test_missing_sources(config, message):
    with pytest.raises(UsageError, match=message):
        load_examples(DataConfig(**config))


def test_a_column_that_is_not_there_names_those_that_are(tmp_path):
    path = write(tmp_path / "a.csv", "sentence,score\nThe dog runs.,1\n")
    with pytest.raises(UsageError, match=r"no column 'sentense'; it has sentence, score. Did you mean 'sentence'\?"):
        load_examples(DataConfig(train=path, text="sentense"))


@pytest.mark.parametrize(
    ("content", "message"), [("", "is empty"), ("text\n\n", "no usable row"), ("text\n  \n", "no usable row")]
)
def test_files_without_rows(tmp_path, content, message):
    with pytest.raises(UsageError, match=message):
        load_examples(DataConfig(train=write(tmp_path / "a.csv", content)))


def test_one_row_cannot_be_split():
    with pytest.raises(UsageError, match="at least 2"):
        load_examples(["only one sentence"])


def test_a_given_data_set_is_used_as_it_is():
    found = load_examples(datasets.Dataset.from_dict({"text": TEXTS, "other": TEXTS}))
    assert found.train.column_names == ["text"]


def test_an_unknown_hub_data_set_says_so():
    with pytest.raises(UsageError, match="no local file or folder"):
        load_examples(DataConfig(train="someone/no-such-data-set"))
