import datasets
import pytest
from PIL import Image

from hf_pe.data import DataConfig, load_examples, load_for_evaluation
from hf_pe.errors import UsageError


def folder_of(path, **contents):
    for name, texts in contents.items():
        file = path / name.replace("__", "/").replace("_dot_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{text}\n" for text in texts), "utf-8")
    return str(path)


def test_only_data_files_are_data(tmp_path):
    folder = folder_of(
        tmp_path, README_dot_md=["# About"], LICENSE_dot_txt=["free"], _dot_hidden_dot_txt=["secret"],
        _dot_git__a_dot_txt=["not this"], a_dot_txt=["one", "two", "three"], notes_dot_md=["a note"], sub__b_dot_txt=["four"],
    )  # fmt: skip
    examples = load_examples(folder)
    assert sorted([*examples.train["text"], *examples.eval["text"]]) == ["four", "one", "three", "two"]
    assert examples.warnings == ("Data: files of the folder that are not used: notes.md.",)


def test_splits_are_taken_by_name_and_tests_are_never_trained_on(tmp_path):
    folder = folder_of(
        tmp_path,
        train_dot_txt=["one", "two"],
        validation_dot_txt=["three"],
        test_dot_txt=["four"],
        more_dot_txt=["five"],
    )
    examples = load_examples(folder)
    assert examples.train["text"] == ["one", "two"]
    assert examples.eval["text"] == ["three"], "the validation files that lie there, nothing held out"
    assert examples.config.eval == (folder,)
    assert "more.txt" in examples.warnings[0]
    assert load_for_evaluation(DataConfig(train=folder)).eval["text"] == ["three"]


def test_folders_named_for_splits(tmp_path):
    folder = folder_of(tmp_path, train__a_dot_txt=["one", "two"], dev__a_dot_txt=["three"], test__a_dot_txt=["four"])
    examples = load_examples(folder)
    assert (examples.train["text"], examples.eval["text"]) == (["one", "two"], ["three"])


def test_a_folder_without_training_files_is_refused(tmp_path):
    folder = folder_of(tmp_path, test_dot_txt=["one", "two"])
    with pytest.raises(UsageError, match="no file for the split 'train', only for test, which are not used for it"):
        load_examples(folder)
    examples = load_examples(DataConfig(train="builtin:pydoc", eval=folder, limit=5))
    assert examples.eval["text"] == ["one", "two"]


def test_test_files_beside_unnamed_ones_are_left_out_and_named(tmp_path):
    folder = folder_of(tmp_path, a_dot_txt=["one", "two"], speech_test_dot_txt=["three"])
    examples = load_examples(folder)
    assert {*examples.train["text"], *examples.eval["text"]} == {"one", "two"}
    assert "speech_test.txt" in examples.warnings[0]


def test_the_same_folder_twice_is_refused_where_no_files_are_named_for_evaluation(tmp_path):
    folder = folder_of(tmp_path / "some", a_dot_txt=["one", "two"])
    with pytest.raises(UsageError, match=r"a.txt is in data.train too"):
        load_examples(DataConfig(train=folder, eval=folder))


def test_a_label_called_train_is_a_label(tmp_path):
    for label in ("car", "train", "test"):
        (tmp_path / "all" / label).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "all" / label / f"{number}.png")
    examples = load_examples(DataConfig(train=str(tmp_path / "all"), image="image", label="label"))
    assert set(examples.train["label"]) | set(examples.eval["label"]) == {"car", "train", "test"}
    (tmp_path / "train").mkdir()
    (tmp_path / "all").rename(tmp_path / "train" / "all")
    assert len(load_examples(DataConfig(train=str(tmp_path), image="image", label="label")).train) == 8


def test_a_folder_without_data_files_says_what_it_has(tmp_path):
    folder = folder_of(tmp_path, stsa_dot_train=["1 good"])
    with pytest.raises(UsageError, match=r"is empty. Expected files of .csv .* it has .train. .*name each file"):
        load_examples(folder)


def test_saved_data_sets(tmp_path):
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"]))
    rows = datasets.Dataset.from_dict({"text": ["one", "two", "three"], "label": [0, 1, 1]}, features=features)
    rows.save_to_disk(tmp_path / "one")
    examples = load_examples(DataConfig(train=str(tmp_path / "one"), label="label"))
    assert examples.train.features["label"].names == ["no", "yes"]
    assert len(examples.train) + len(examples.eval) == 3
    datasets.DatasetDict(train=rows, validation=rows.select([0]), test=rows).save_to_disk(tmp_path / "splits")
    examples = load_examples(str(tmp_path / "splits"))
    assert (len(examples.train), len(examples.eval), examples.counts.overlapping) == (3, 1, 1)
    with pytest.raises(UsageError, match="no split 'training'; it has train, validation, test"):
        load_examples(DataConfig(train=str(tmp_path / "splits"), train_split="training"))


def test_labels_of_sources_that_write_them_differently_are_joined(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\none,1\n")
    (tmp_path / "b.jsonl").write_text('{"text": "two", "label": 0}\n')
    names = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["x", "y"]))
    datasets.Dataset.from_dict({"text": ["three"], "label": [1]}, features=names).to_parquet(tmp_path / "c.parquet")
    examples = load_for_evaluation(
        DataConfig(train=tuple(str(tmp_path / n) for n in ("a.csv", "b.jsonl")), label="label")
    )
    assert examples.eval["label"] == ["1", "0"]
    examples = load_for_evaluation(DataConfig(train=str(tmp_path), label="label"))
    assert examples.eval["label"] == ["1", "0", "y"]


def test_a_hub_data_set_with_several_configurations(tmp_path, monkeypatch):
    folder_of(tmp_path, a__x_dot_txt=["one"], b__x_dot_txt=["two"])
    about = "configs:\n- config_name: first\n  data_files: a/x.txt\n- config_name: second\n  data_files: b/x.txt\n"
    (tmp_path / "README.md").write_text(f"---\n{about}---\n")
    load, asked = datasets.load_dataset, []

    def from_folder(name, config_name, **more):
        asked.append(more.pop("revision"))
        return load(str(tmp_path), config_name, cache_dir=str(tmp_path / "cache"), **more)

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    with pytest.raises(UsageError, match=r"several configurations; set data\.config_name to one of first, second"):
        load_examples("someone/rows")
    config = DataConfig(train="someone/rows", config_name="second", eval_split="train", revision="v1")
    assert load_for_evaluation(config).eval["text"] == ["two"]
    assert asked[-1] == "v1"
    with pytest.raises(UsageError, match=r"is in data\.train too"):
        load_examples(config.model_copy(update={"eval": "someone/rows"}))
