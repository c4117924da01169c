import datasets
import pytest
from transformers import BertConfig

from hf_pe.data import DataConfig, Examples, load_examples
from hf_pe.data_facts import RowCounts
from hf_pe.errors import UsageError
from hf_pe.tasks import TextClassification, prepare
from hf_pe.tasks.labels import label_numbers, require_classes, unused_name_warnings


def model(*names, **more):
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return BertConfig(**labels, **more)


def test_another_order_of_the_same_names_is_translated():
    feature = datasets.ClassLabel(names=["positive", "neutral", "negative"])
    assert label_numbers([0, 1, 2], model("negative", "neutral", "positive"), feature) == [2, 1, 0]
    assert label_numbers([0, 1, 2], model("NEGATIVE", "Neutral", "POSITIVE"), feature) == [2, 1, 0]


@pytest.mark.parametrize(
    "nested", [lambda f: datasets.List(f), lambda f: {"bbox": datasets.Value("int64"), "category": datasets.List(f)}]
)
def test_names_inside_lists_and_objects(nested):
    feature = nested(datasets.ClassLabel(names=["B", "A"]))
    assert label_numbers([0, 1], model("A", "B"), feature) == [1, 0]


def test_names_that_say_nothing_count_by_number():
    feature = datasets.ClassLabel(names=["World", "Sports"])
    assert label_numbers([1, 0], BertConfig(num_labels=2), feature) == [1, 0]
    assert label_numbers([1, 0], model("dull", "good"), datasets.ClassLabel(num_classes=2)) == [1, 0]


@pytest.mark.parametrize(
    ("names", "label", "message"),
    [
        (
            ["neg", "pos"],
            0,
            "labels are neg, pos and the model's are negative, positive, so that they cannot be matched by name",
        ),
        (["negative", "unknown"], 1, "label 'unknown' is none of the model's: negative, positive"),
        (["negative", "positive"], -1, r"label -1 \(no label\) is none"),
        (["a", "b", "c"], 0, "cannot be matched by name"),
    ],
)
def test_names_that_do_not_fit_are_refused(names, label, message):
    with pytest.raises(UsageError, match=message):
        label_numbers([label], model("negative", "positive"), datasets.ClassLabel(names=names))


def test_names_that_differ_are_translated_as_the_user_says():
    config, renamed = model("NEGATIVE", "POSITIVE"), {"neg": "NEGATIVE", "pos": "positive"}
    assert label_numbers([0, 1], config, datasets.ClassLabel(names=["pos", "neg"]), renamed) == [1, 0]
    assert label_numbers(["pos", "neg", "POSITIVE"], config, renamed=renamed) == [1, 0, 1]


@pytest.mark.parametrize(
    ("renamed", "message"),
    [
        ({"pos": "good"}, "data.label_names: good is none of the model's labels: negative, positive"),
        ({"po": "positive"}, "data.label_names: po is none of the data's labels: pos, neg"),
    ],
)
def test_a_mistyped_name_is_refused(renamed, message):
    with pytest.raises(UsageError, match=message):
        label_numbers([0], model("negative", "positive"), datasets.ClassLabel(names=["pos", "neg"]), renamed)


@pytest.mark.parametrize(
    "labels", [["neg", "pos"], [["neg", "pos"], ["pos"]], ["neg pos", "pos"], [{"category": ["neg", "pos"]}] * 2]
)
def test_a_name_that_no_row_has_is_refused_or_said(labels):
    rows = datasets.Dataset.from_dict({"label": labels})

    def examples(renamed, over_limit=0):
        config = DataConfig(train="rows", label="label", label_names=renamed)
        return Examples(rows, rows, config, "", counts=RowCounts(over_limit=over_limit))

    assert not unused_name_warnings(examples({"neg": "NEGATIVE", "pos": "POSITIVE"}))
    with pytest.raises(UsageError, match=r"data.label_names: nge is no label .*: neg.*pos\. Did you mean 'neg'"):
        unused_name_warnings(examples({"nge": "NEGATIVE"}))
    (sentence,) = unused_name_warnings(examples({"nge": "NEGATIVE"}, over_limit=3))
    assert "nge is no label of any row that is used" in sentence


def test_a_mistyped_name_is_refused_for_a_table(tokenizer, tmp_path):
    (tmp_path / "a.csv").write_text("text,label\none day,0\ntwo days,1\nthree days,0\nfour days,1\n")
    config = DataConfig(
        train=str(tmp_path / "a.csv"), label="label", label_names={"1.0": "negative"}, eval_fraction=0.5
    )
    with pytest.raises(UsageError, match=r"data.label_names: 1\.0 is no label of any row that is used: 0, 1"):
        prepare(TextClassification(), load_examples(config), tokenizer, model("negative", "positive"))


def test_another_number_of_nameless_classes_is_refused():
    with pytest.raises(UsageError, match="cannot be matched by name"):
        label_numbers([0], BertConfig(num_labels=2), datasets.ClassLabel(names=["a", "b", "c"]))


def test_strings_are_matched_by_name_without_case_and_numbers_by_value():
    config = model("negative", "Positive", "mixed")
    assert label_numbers(["positive", "NEGATIVE", "2", "1.0", 1.0, 0, True], config) == [1, 0, 2, 1, 1, 0, 1]
    assert label_numbers([True, False], model("true", "false")) == [0, 1]
    assert label_numbers(["b", "B"], model("B", "b")) == [1, 0]
    for label in ("0001", "3", "1.5"):
        with pytest.raises(UsageError, match=f"label '{label}' is none of the model's"):
            label_numbers([label], config)


@pytest.mark.parametrize("config", [BertConfig(num_labels=1), BertConfig(num_labels=3, problem_type="regression")])
def test_regression_is_refused(config):
    with pytest.raises(UsageError, match=r"evaluation of regression are not supported yet\. hf-pe cut, hf-pe quantize"):
        require_classes(config)
