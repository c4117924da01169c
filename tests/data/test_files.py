import gzip
import json

import datasets
import pytest

from hf_pe.data import DataConfig, load_for_evaluation
from hf_pe.errors import UsageError
from tests.helpers import shared

LINES = '{"text": "The dog runs.", "label": 1}\n{"text": "The cat sleeps.", "label": 0}\n'


def write(path, text):
    path.write_text(text, "utf-8")
    return str(path)


def rows(path, **config):
    return load_for_evaluation(DataConfig(train=str(path), **config)).eval


@pytest.mark.parametrize(
    ("name", "content", "labels"),
    [
        ("a.csv", "text,label\nThe dog runs.,1\nThe cat sleeps.,0\n", ["1", "0"]),
        ("a.tsv", 'text\tlabel\nThe "dog runs.\t1\nThe cat sleeps.\t0\n', ["1", "0"]),
        ("a.jsonl", LINES, [1, 0]),
        ("a.ndjson", LINES, [1, 0]),
        ("a.json", LINES, [1, 0]),
        ("one.json", '[{"text": "a", "label": 1}, {"text": "The cat sleeps.", "label": 0}]', [1, 0]),
        ("columns.json", '{"text": ["a", "The cat sleeps."], "label": [1, 0]}', [1, 0]),
        ("pandas.json", '{"text": {"0": "a", "1": "The cat sleeps."}, "label": {"0": 1, "1": 0}}', [1, 0]),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "gz", "byte order mark"])
def test_formats(tmp_path, name, content, labels, kind):
    path = tmp_path / (name + ".gz" if kind == "gz" else name)
    encoded = content.encode("utf-8-sig" if kind == "byte order mark" else "utf-8")
    path.write_bytes(gzip.compress(encoded) if kind == "gz" else encoded)
    content = rows(path, label="label")
    assert content["label"] == labels
    assert content["text"][1] == "The cat sleeps."


def test_text_lines_with_the_label_in_front(tmp_path):
    path = tmp_path / "stsa.train"
    path.write_bytes("1 a caf\xe9 scene\n0 dull\n".encode("latin-1"))
    content = rows(path, label="label", label_first=True, encoding="latin-1")
    assert content["text"] == ["a café scene", "dull"]
    assert content["label"] == ["1", "0"]


@pytest.mark.parametrize(
    ("name", "column", "values"),
    [
        ("digit_labels.jsonl", "label", ["0001", "1"]),
        ("long_digits.jsonl", "text", ["12345678901234567890123", "12345678901234567890124"]),
        ("mixed_unused_column.jsonl", "text", ["a row", "another row"]),
        ("date_like_text.jsonl", "date", ["2024-01-02 was a Tuesday", "2024-01-03"]),
        ("line_separator.txt", "text", ["one line\u2028still the same line", "second line"]),
    ],
)
def test_values_are_those_that_are_written(name, column, values):
    label = None if name.endswith("txt") else "label"
    content = rows(shared(f"cases/data/{name}"), text=column if column != "label" else "text", label=label)
    assert content[column] == values


def test_numbers_beside_strings_become_strings(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": 12, "label": "x"}\n{"text": "twelve", "label": 1}\n')
    assert rows(path, label="label").to_dict() == {"text": ["12", "twelve"], "label": ["x", "1"]}


def test_digits_in_a_csv_stay_as_they_are(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\n007,0012\n1e5,1.10\n")
    assert rows(path, label="label").to_dict() == {"text": ["007", "1e5"], "label": ["0012", "1.10"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\nfine,1\nHello, world,0\n", "line 3 has 3 fields and the header 2"),
        ("a.csv", 'text,label\nfine,1\n"He said "no", then left",0\n', "line 3: .*a quote that is not written twice"),
        ("a.csv", 'text,label\n"never closed,1\nfine,0\n', "line 3: unexpected end of data"),
        ("a.tsv", "text\tlabel\na\tb\tc\n", "line 2 has 3 fields and the header 2"),
        ("a.csv", "text,text\na,b\n", "the header names text twice"),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', "line 2: expected an object"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "line 2: "),
        ("a.json", '{"version": "1", "data": [{"text": "a"}]}', "expected a list of objects, got one object with the"),
        ("a.json", "{", "cannot be read as .json"),
        ("a.txt", "a\0b\n", "NUL characters"),
        (
            "a.jsonl",
            '{"text": "a", "label": [1]}\n{"text": "b", "label": "x"}\n',
            "column 'label' are of different types",
        ),
    ],
)
def test_what_cannot_be_right_is_refused_with_its_line(tmp_path, name, content, message):
    with pytest.raises(UsageError, match=message):
        rows(write(tmp_path / name, content), label="label" if "label" in content else None)


def test_encodings_that_do_not_fit(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("text\ncaf\xe9\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"cannot be read as .csv in utf-8.*set data.encoding"):
        rows(path)
    with pytest.raises(UsageError, match="unknown encoding: nothing"):
        rows(path, encoding="nothing")
    (tmp_path / "b.csv.gz").write_bytes(b"text\nnot packed\n")
    with pytest.raises(UsageError, match="Not a gzipped file"):
        rows(tmp_path / "b.csv.gz")


def test_trailing_delimiters_shift_nothing(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\nThe dog runs.,1,\nThe cat sleeps.,0,\n")
    assert rows(path, label="label")["text"] == ["The dog runs.", "The cat sleeps."]


def test_a_long_field_is_read(tmp_path):
    path = write(tmp_path / "a.csv", "text\n" + "word " * 40_000 + "\n")
    assert len(rows(path)["text"][0]) > 150_000


def test_parquet_keeps_names_of_labels_and_leaves_other_columns_alone(tmp_path):
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"]))
    made = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    made.add_column("other", [1, 2]).to_parquet(tmp_path / "a.parquet")
    table = rows(tmp_path / "a.parquet", label="label")
    assert table.features["label"].names == ["no", "yes"]
    assert table.column_names == ["text", "label"]
    with pytest.raises(UsageError, match=r"no column 'txt'; it has text, label, other. Did you mean 'text'"):
        rows(tmp_path / "a.parquet", text="txt")
    (tmp_path / "b.parquet").write_text(json.dumps({}))
    with pytest.raises(UsageError, match=r"cannot be read as \.parquet"):
        rows(tmp_path / "b.parquet")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_what_no_reader_can_hold_is_a_message(name, tmp_path):
    deep = '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}"
    with pytest.raises(UsageError, match=r"cannot be read as \.jsonl? in utf-8.*recursion"):
        rows(write(tmp_path / name, deep + "\n" if name == "a.jsonl" else f"[{deep}]"))
    with pytest.raises(UsageError, match=r"column 'text' has half a character .*Write the text again"):
        rows(write(tmp_path / name, '{"text": "\\ud800"}\n'))
