import copy
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from PIL import Image
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    PreTrainedTokenizerFast,
    RobertaConfig,
    T5Config,
    ViTConfig,
    ViTImageProcessor,
    Wav2Vec2Config,
    XLNetConfig,
)

from hf_pe.data import DataConfig, load_examples, load_for_evaluation
from hf_pe.errors import UsageError
from hf_pe.run.provenance import data_facts
from hf_pe.tasks import CausalLM, Embedding, TextClassification, positions, prepare, task_named
from tests.helpers import TEXTS, bert_config, shared

LABELS = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}


def labelled(labels, count=40, **config):
    rows = {"text": TEXTS[:count], "label": [labels[i % len(labels)] for i in range(count)]}
    return load_examples((datasets.Dataset.from_dict(rows), DataConfig(train="rows", label="label", **config)))


def test_rows_that_are_cut_off_are_counted(tokenizer):
    examples = load_examples((TEXTS, DataConfig(train="texts", max_length=10)))
    longer = sum(len(ids) > 10 for ids in tokenizer(TEXTS)["input_ids"])
    assert 0 < longer < len(TEXTS)
    data = prepare(Embedding(), examples, tokenizer, bert_config())
    assert data.truncated == data.examples.counts.truncated == longer
    assert data_facts(data.examples).counts.truncated == longer
    assert f"{longer} of {len(TEXTS)} rows have more tokens than data.max_length=10" in data.warnings[-1]
    assert prepare(Embedding(), load_examples(TEXTS), tokenizer, bert_config()).truncated == 0


@pytest.mark.parametrize("kind", ["masked_lm", "token_classification", "seq2seq", "text_classification"])
def test_every_task_counts_rows_that_are_cut_off(kind, tokenizer):
    texts, labels = [t.split() for t in TEXTS] if kind == "token_classification" else TEXTS, ["positive"] * len(TEXTS)
    if kind == "token_classification":
        labels = [["negative"] * len(words) for words in texts]
    rows = datasets.Dataset.from_dict({"text": texts, "label": labels})
    config = DataConfig(train="rows", label=None if kind == "masked_lm" else "label", max_length=8)
    model = T5Config(vocab_size=200, decoder_start_token_id=0) if kind == "seq2seq" else bert_config(**LABELS)
    data = prepare(task_named(kind), load_examples((rows, config)), tokenizer, model)
    longer = sum(len(ids) > 8 for ids in tokenizer(TEXTS)["input_ids"])
    assert data.truncated >= longer > 0


def test_more_tokens_than_positions_are_refused(tokenizer):
    with pytest.raises(UsageError, match=r"data.max_length: expected at most 64, the positions that bert has; got 65"):
        prepare(Embedding(), load_examples((TEXTS, DataConfig(train="x", max_length=65))), tokenizer, bert_config())
    data = prepare(CausalLM(), load_examples(TEXTS), tokenizer, bert_config())
    assert data.examples.config.max_length == 64, "not given: as many as there are positions"
    assert len(data.train[0]["input_ids"]) == 64


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (BertConfig(), 512),
        (RobertaConfig(max_position_embeddings=514, pad_token_id=1), 512),
        (T5Config(), None),
        (DebertaV2Config(position_biased_input=False), None),
        (XLNetConfig(), None),
    ],
)
def test_positions(config, expected):
    assert positions(config) == expected


def test_ids_outside_the_embedding_are_refused(tokenizer):
    with pytest.raises(UsageError, match=r"makes id \d+, and the model's embedding has ids 0 to 39"):
        prepare(Embedding(), load_examples(TEXTS), tokenizer, bert_config(vocab_size=40))
    padded = copy.deepcopy(tokenizer)
    padded.add_special_tokens({"pad_token": "<pad>"})
    with pytest.raises(UsageError, match=rf"pads with id {len(padded) - 1} \(<pad>\).*Set tokenizer.pad_token"):
        prepare(Embedding(), load_examples(TEXTS), padded, bert_config(vocab_size=len(tokenizer)))


def test_a_tokenizer_without_padding_pads_with_its_end(tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="[SEP]")
    data = prepare(TextClassification(), labelled(("negative", "positive")), bare, bert_config(**LABELS))
    assert next(data.batches(data.train, 4))["input_ids"].shape[0] == 4


def test_evaluation_on_one_label_or_one_row_is_said(tokenizer):
    config = bert_config(**LABELS)
    fine = prepare(TextClassification(), labelled(("negative", "positive")), tokenizer, config)
    assert not fine.warnings
    one = prepare(TextClassification(), labelled(("positive",)), tokenizer, config)
    assert one.warnings == (
        "Data: all 4 evaluation rows have the same label, 'positive': a model that always predicts it has an accuracy of 1. "
        "Use rows of every label in data.eval.",
    )
    row = prepare(TextClassification(), labelled((0, 1), eval_limit=1), tokenizer, config)
    assert "only one evaluation row" in row.warnings[0]


def test_lists_of_words_are_no_texts(tokenizer):
    rows = datasets.Dataset.from_dict({"text": [text.split() for text in TEXTS]})
    for task in (Embedding(), CausalLM(), task_named("masked_lm")):
        with pytest.raises(UsageError, match=r"expected a text in each row of column 'text', got \['The'"):
            prepare(task, load_examples(rows), tokenizer, bert_config())


def test_scores_of_pairs_are_numbers(tokenizer):
    rows = datasets.Dataset.from_dict({"text": TEXTS, "other": TEXTS[::-1], "label": ["alike"] * len(TEXTS)})
    examples = load_examples((rows, DataConfig(train="x", text_pair="other", label="label")))
    with pytest.raises(UsageError, match=r"data.label: expected a score for each pair in column 'label'"):
        prepare(Embedding(), examples, tokenizer, bert_config())


def test_regression_is_refused_with_the_reason(tokenizer):
    examples = load_examples(DataConfig(train=str(shared("cases/data/scores.csv")), label="score"))
    with pytest.raises(UsageError, match="regression are not supported yet"):
        prepare(TextClassification(), examples, tokenizer, bert_config(num_labels=1))


def test_a_data_sets_own_order_of_labels_is_translated(tokenizer, classifier_folder):
    model = BertForSequenceClassification.from_pretrained(classifier_folder)
    names = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["Positive", "Negative"]))
    rows = datasets.Dataset.from_dict({"text": TEXTS, "label": [0] * len(TEXTS)}, features=names)
    data = prepare(TextClassification(), load_examples(rows, needs_label=True), tokenizer, model.config)
    assert set(data.train["labels"]) == {1}, "the model calls 1 positive"


def test_images_that_cannot_be_read_are_named_before_work(tmp_path):
    for label in ("LABEL_0", "LABEL_1"):
        (tmp_path / label).mkdir()
        for number in range(4):
            Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / label / f"{number}.jpg")
    whole = (tmp_path / "LABEL_1" / "2.jpg").read_bytes()
    (tmp_path / "LABEL_0" / "broken.jpg").write_text("<html>not found</html>")
    (tmp_path / "LABEL_1" / "2.jpg").write_bytes(whole[: len(whole) // 2])
    examples = load_for_evaluation(DataConfig(train=str(tmp_path), image="image", label="label"))
    with pytest.raises(UsageError, match=r"(?s)4 of 18 rows of column 'image' cannot be read.*broken.jpg.*2.jpg"):
        prepare(task_named("image_classification"), examples, None, ViTConfig())


def test_rows_that_only_a_training_reads_are_checked_where_something_trains(tmp_path):
    names = [str(tmp_path / f"{number}.png") for number in range(12)]
    for number, name in enumerate(names):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(name)
    config = DataConfig(train="x", eval="x", image="image", label="label", calibration=2)
    made = datasets.Dataset.from_dict({"image": names, "label": [0, 1] * 6})
    examples = load_examples((datasets.DatasetDict(train=made, validation=made), config))
    where = set(prepare(task_named("image_classification"), examples, None, ViTConfig()).calibration_rows)
    assert len(where) == 2
    broken = examples.train["image"][next(number for number in range(12) if number not in where)]
    Path(broken).write_text("<html>")
    evaluation = examples.eval.filter(lambda row: row["image"] != broken)
    data = prepare(task_named("image_classification"), replace(examples, eval=evaluation), None, ViTConfig())
    with pytest.raises(UsageError, match=r"1 of 10 rows of column 'image' cannot be read.*\n.*cannot identify image"):
        data.check_training_rows()


@pytest.mark.parametrize("settings", [{"image_mean": [0.5]}, {"resample": -1}, {"image_std": "x"}])
def test_a_processor_with_broken_settings_is_named_before_work(settings):
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    for name, value in settings.items():
        setattr(processor, name, value)
    rows = datasets.Dataset.from_dict({"image": [Image.new("RGB", (9, 9))] * 4, "label": ["negative", "positive"] * 2})
    examples = load_examples((rows, DataConfig(train="rows", image="image", label="label")))
    with pytest.raises(UsageError, match=r"ViTImageProcessor\w* cannot prepare the data: .*preprocessor_config"):
        prepare(task_named("image_classification"), examples, processor, ViTConfig(image_size=16, **LABELS))


def test_recordings_that_cannot_be_read_are_named_before_work():
    class Processor:
        sampling_rate = 16000

    rows = datasets.Dataset.from_dict({"audio": [b"RIFF", b"RIFX....WAVE"], "label": [0, 1]})
    examples = load_examples((rows, DataConfig(train="x", audio="audio", label="label")))
    with pytest.raises(UsageError, match="2 of 2 rows of column 'audio' cannot be read"):
        prepare(task_named("audio_classification"), examples, Processor(), Wav2Vec2Config())
