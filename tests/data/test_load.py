import random
from collections import Counter

import datasets
import pytest

from hf_pe.data import DataConfig, load_examples, load_for_evaluation, sentences
from hf_pe.errors import UsageError
from hf_pe.tasks import TaskData
from tests.helpers import TEXTS, shared


def write(path, text):
    path.write_text(text, "utf-8")
    return str(path)


def test_the_held_out_part_is_never_trained_on():
    examples = load_examples(TEXTS)
    assert len(examples.eval) == round(len(TEXTS) * 0.1)
    assert not set(examples.eval["text"]) & set(examples.train["text"])
    assert set(examples.eval["text"]) | set(examples.train["text"]) == set(TEXTS)


def test_the_split_and_its_fingerprint_are_the_same_each_time():
    assert load_examples(TEXTS).fingerprint == load_examples(TEXTS).fingerprint
    assert load_examples(TEXTS).fingerprint != load_examples(TEXTS[1:]).fingerprint


def test_several_sources_limits_and_empty_rows(tmp_path):
    one = write(tmp_path / "one.csv", "text\nThe dog runs.\n\n  \nThe dog runs.\n")
    two = write(tmp_path / "two.csv", "text\nThe dog runs.\nThe cat sleeps.\nThe bird sings.\n")
    three = write(tmp_path / "three.csv", "text\nThe cat sleeps.\nThe horse eats.\n")
    examples = load_examples(DataConfig(train=(one, two), eval=three, limit=2, eval_limit=1))
    assert len(examples.train) == 2
    assert set(examples.train["text"]) < {"The dog runs.", "The cat sleeps.", "The bird sings."}
    assert len(examples.eval) == 1
    assert (examples.counts.read, examples.counts.empty, examples.counts.duplicate, examples.counts.over_limit) == (
        8,
        1,
        2,
        2,
    )
    assert examples.warnings[0] == "Data: 1 of 8 rows have an empty field and are left out."
    assert examples.warnings[1] == "Data: 2 of 8 rows repeat another row and are left out."


def test_labels_called_na_are_labels():
    path = str(shared("cases/data/na_labels.csv"))
    examples = load_examples(DataConfig(train=path, label="label", eval_fraction=0.2))
    assert examples.counts.read == 5
    assert examples.counts.empty == examples.counts.duplicate == 0
    rows = [*examples.train, *examples.eval]
    assert sorted(row["label"] for row in rows) == ["EU", "EU", "NA", "None", "null"]
    assert "NA" in [row["text"] for row in rows]


@pytest.mark.parametrize("kind", ["limit", "calibration", "held out", "eval_limit"])
def test_a_sorted_file_is_sampled_all_over(kind, tmp_path):
    path, other = str(shared("cases/data/sorted.csv")), write(tmp_path / "dev.csv", "text,label\nanother,neg\n")
    if kind == "limit":
        rows = load_examples(DataConfig(train=path, eval=other, label="label", limit=50)).train
    elif kind == "calibration":
        examples = load_examples(DataConfig(train=path, eval=other, label="label", calibration=50))
        rows = TaskData(None, None, examples.train, examples.eval, None, examples).calibration
    elif kind == "held out":
        rows = load_examples(DataConfig(train=path, label="label", eval_fraction=0.25)).eval
        counts = Counter(rows["label"])
        assert counts["neg"] == counts["pos"], "as in the file, where half are of each class"
    else:
        rows = load_for_evaluation(DataConfig(train=path, label="label", eval_limit=30)).eval
    counts = Counter(rows["label"])
    assert min(counts["neg"], counts["pos"]) > 0.25 * len(rows)


def test_unlabelled_rows_are_held_out_as_ever():
    examples = load_examples(TEXTS)
    order = list(range(len(TEXTS)))
    random.Random(0).shuffle(order)
    assert examples.train["text"] == [TEXTS[i] for i in order[len(examples.eval) :]]


def test_a_rare_class_does_not_stop_the_split(tmp_path):
    rows = [f"row {i},{'rare' if i == 3 else i % 2}" for i in range(20)]
    path = write(tmp_path / "a.csv", "\n".join(["text,label", *rows]))
    assert len(load_examples(DataConfig(train=path, label="label")).eval) == 2


def test_evaluation_on_the_training_file_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", "text\nThe dog runs.\nThe cat sleeps.\n")
    other = write(tmp_path / "b.csv", "text\nThe bird sings.\n")
    (tmp_path / "link.csv").symlink_to(path)
    for evaluation in (path, str(tmp_path / "link.csv"), (other, path)):
        with pytest.raises(UsageError, match=r"data.eval: a.csv is in data.train too.*Leave data.eval out"):
            load_examples(DataConfig(train=path, eval=evaluation))
    examples = load_for_evaluation(DataConfig(train=path))
    assert examples.eval["text"] == ["The dog runs.", "The cat sleeps."]


def test_evaluation_rows_that_are_training_rows_are_counted(tmp_path):
    one = write(tmp_path / "a.csv", "text,label\nThe dog runs.,1\nThe cat sleeps.,0\n")
    two = write(tmp_path / "b.csv", "text,label\nThe dog runs.,0\nThe bird sings.,1\n")
    examples = load_examples(DataConfig(train=one, eval=two, label="label"))
    assert examples.counts.overlapping == 1
    assert "1 of 2 evaluation rows are training rows too" in examples.warnings[0]


def test_a_given_data_set_brings_its_label_where_the_task_needs_one():
    rows = datasets.Dataset.from_dict({"text": TEXTS, "labels": [i % 2 for i in range(len(TEXTS))]})
    assert load_examples(rows).train.column_names == ["text"]
    examples = load_examples(rows, needs_label=True)
    assert examples.config.label == "labels"
    assert set(examples.train["labels"]) == {0, 1}


def test_given_rows_with_settings():
    rows = datasets.Dataset.from_dict({"sentence": TEXTS, "tag": ["a"] * len(TEXTS), "other": TEXTS})
    config = DataConfig(train="my sentences", text="sentence", label="tag", limit=10)
    examples = load_examples((rows, config))
    assert examples.train.column_names == ["sentence", "tag"]
    assert len(examples.train) == 10
    both = datasets.DatasetDict(train=rows.select(range(20)), validation=rows.select(range(20, 25)))
    assert load_examples((both, config)).eval["sentence"] == TEXTS[20:25]
    with pytest.raises(UsageError, match="the data set has no column 'text'; it has sentence, tag, other"):
        load_examples(rows)
    with pytest.raises(UsageError, match="expected a list of texts, got "):
        load_examples([{"text": "a row"}])


def test_chat_is_refused_with_the_reason():
    path = str(shared("cases/data/chat.jsonl"))
    with pytest.raises(UsageError, match=r"Chat data are not supported yet.*apply_chat_template"):
        load_examples(DataConfig(train=path, text="messages"))


def test_a_value_that_is_cut_short_in_a_message_ends_before_the_next_word():
    rows = datasets.Dataset.from_dict({"text": [[{"role": "user", "content": "x" * 200}]] * 3})
    with pytest.raises(UsageError, match=r"got `\[\{.*x \.\.\.`\. Chat data are not"):
        load_examples(rows)


def test_builtin_prose_is_prose():
    examples = load_examples("builtin:pydoc")
    assert len(examples.train) > 1000
    assert all(5 <= len(text.split()) <= 60 for text in examples.train["text"])


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


def test_ids_of_data_sets_may_have_dots():
    with pytest.raises(UsageError, match=r"someone/rows-2\.5 is no local file or folder, and as a Hub data set"):
        load_examples(DataConfig(train="someone/rows-2.5"))


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
    examples = load_examples(datasets.Dataset.from_dict({"text": TEXTS, "other": TEXTS}))
    assert examples.train.column_names == ["text"]


def test_an_unknown_hub_data_set_says_so():
    with pytest.raises(UsageError, match="no local file or folder"):
        load_examples(DataConfig(train="someone/no-such-data-set"))
