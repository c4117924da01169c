"""Each task from rows to a taught student: signals have the promised shapes, judging is right for a model that knows."""

import copy
import io
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForTokenClassification,
    BertModel,
    DetrImageProcessorPil,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
)

from hf_pe.data import DataConfig, Examples, load_examples
from hf_pe.distill import Cache, Distillation
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import UsageError
from hf_pe.quantize import BitsAndBytesQuantization
from hf_pe.quantizers.layers import plain_linear_layers
from hf_pe.quantizers.registry import dequantized_weight
from hf_pe.recipe import StageState
from hf_pe.tasks import TASKS, EvalResult, task_named
from hf_pe.tasks.audio_classification import waveform
from hf_pe.tasks.question_answering import _word_f1
from hf_pe.tasks.token_classification import spans
from tests.helpers import TEXTS, bert_config, small_detr, train_student

ANIMALS = {"dog": "B-DOG", "cat": "B-CAT"}
NAMES = ["O", "B-DOG", "B-CAT", "I-CAT"]


def examples(rows, **config):
    dataset = datasets.Dataset.from_list(rows)
    return Examples(dataset, dataset.select(range(12)), DataConfig(train="x", max_length=32, **config), "")


def token_classification():
    rows = [{"text": t.split(), "label": [ANIMALS.get(w, "O") for w in t.split()]} for t in TEXTS]
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
    return examples(rows, label="label"), BertForTokenClassification(bert_config(**labels)), None


def question_answering():
    rows = []
    for text in TEXTS:
        animal = text.split()[2]
        answers = {"text": [animal], "answer_start": [text.index(animal)]}
        rows.append({"text": "Who is it?", "context": text, "answers": answers})
    raw = examples(rows, text_pair="context", label="answers")
    return raw, BertForQuestionAnswering(bert_config()), None


def masked_lm():
    return examples([{"text": t} for t in TEXTS]), BertForMaskedLM(bert_config()), None


def seq2seq(kind="t5"):
    rows = [{"text": t, "label": " ".join(t.split()[1:3])} for t in TEXTS]
    sizes = {"vocab_size": 200, "d_model": 32, "pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0}
    if kind == "t5":
        model = T5ForConditionalGeneration(T5Config(**sizes, d_ff=64, d_kv=16, num_layers=2, num_heads=4))
    else:
        each = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in
                (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))}  # fmt: skip
        model = BartForConditionalGeneration(BartConfig(**sizes, **each, max_position_embeddings=64))
    return examples(rows, label="label"), model, None


def png(red):
    file = io.BytesIO()
    Image.new("RGB", (20, 24), (red, 50, 50)).save(file, "PNG")
    return file.getvalue()


def image_classification():
    rows = [{"image": {"bytes": png(20 + i % 2 * 200), "path": None}, "label": i % 2} for i in range(40)]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=2))
    return examples(rows, image="image", label="label"), model, ViTImageProcessorPil(size={"height": 16, "width": 16})


def audio_classification():
    times = np.arange(1600) / 16000
    rows = [
        {
            "audio": {"array": np.sin(6.28 * (200 + i % 2 * 600) * times).tolist(), "sampling_rate": 16000},
            "label": i % 2,
        }
        for i in range(40)
    ]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = Wav2Vec2Config(
        **sizes, conv_dim=(16, 16), conv_stride=(8, 8), conv_kernel=(10, 8), num_feat_extract_layers=2,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, num_labels=2, classifier_proj_size=16,
        mask_time_prob=0.0, layerdrop=0.0,
    )  # fmt: skip
    processor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    return examples(rows, audio="audio", label="label"), Wav2Vec2ForSequenceClassification(config), processor


def object_detection():
    draw = np.random.default_rng(0)
    rows = []
    for _ in range(40):
        kind, (x, y), side = int(draw.integers(2)), draw.integers(0, 12, 2), int(draw.integers(10, 20))
        image = Image.new("RGB", (32, 32), (100, 100, 100))
        image.paste((250, 250, 250) if kind else (0, 0, 0), (x, y, x + side, y + side))
        file = io.BytesIO()
        image.save(file, "PNG")
        objects = {"bbox": [[float(x), float(y), side, side]], "category": ["light" if kind else "dark"]}
        rows.append({"image": {"bytes": file.getvalue(), "path": None}, "objects": objects})
    size = {"height": 32, "width": 32}
    raw = examples(rows, image="image", label="objects")
    return (
        raw,
        small_detr(id2label={0: "dark", 1: "light"}, label2id={"dark": 0, "light": 1}),
        DetrImageProcessorPil(size=size),
    )


KINDS = [
    token_classification, question_answering, masked_lm, seq2seq, image_classification, audio_classification,
    object_detection,
]  # fmt: skip

ELSEWHERE = {
    "causal_lm": "test_causal_lm.py", "text_classification": "test_text_classification.py", "embedding": "test_embedding.py",
}  # fmt: skip
"""The file with the same tests of the tasks that need more than rows: by blocks, pairs or scores."""


def test_each_task_is_tested():
    assert {kind.__name__ for kind in KINDS} | ELSEWHERE.keys() == TASKS.keys()
    assert all(Path(__file__).with_name(file).exists() for file in ELSEWHERE.values())


def ready(kind, tokenizer):
    raw, model, processor = kind()
    task = task_named(kind.__name__)
    teacher = randomize_weights_(model, 1).eval()
    return replace(task.prepare(raw, processor or tokenizer, model.config), teacher=teacher), teacher


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_student_learns_by_every_signal_the_task_gives(kind, tokenizer):
    data, teacher = ready(kind, tokenizer)
    student = randomize_weights_(copy.deepcopy(teacher), 7).eval()
    losses = {"kl": 1.0, "task": 0.1, "hidden": 0.1}
    recipe = Distillation(steps=40, losses=losses, batch_size=8, learning_rate=3e-3)
    recipe.plan(StageState(student, data))
    trained, curve = train_student(recipe, student, data)
    values = [loss for _, loss in curve]
    assert sum(values[-5:]) < 0.9 * sum(values[:5])
    assert trained.state_dict().keys() == student.state_dict().keys()


@pytest.mark.parametrize("kind", [token_classification, seq2seq, image_classification, audio_classification])
def test_a_whole_cache_teaches_as_the_teacher_does(kind, tokenizer, tmp_path):
    data, teacher = ready(kind, tokenizer)
    student = randomize_weights_(copy.deepcopy(teacher), 7).eval()
    live = Distillation(steps=3, losses={"kl": 1.0, "task": 0.1}, batch_size=8)
    cached = live.model_copy(update={"cache": Cache(folder=str(tmp_path), top_k=200)})
    one, other = (train_student(recipe, student, data)[1] for recipe in (live, cached))
    assert [loss for _, loss in other] == pytest.approx([loss for _, loss in one], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_packed_is_repaired_by_the_rows_of_any_task(kind, tokenizer):
    data, model = ready(kind, tokenizer)
    students = {}
    for refit in ("none", None):
        recipe = BitsAndBytesQuantization(refit=refit)
        students[refit] = recipe.carry_out(StageState(model, data)).model
    names = plain_linear_layers(model, BitsAndBytesQuantization().modules_to_not_convert(model))
    assert names and not any(name.endswith(".wo") for name in names)  # T5's stay in float32
    plain, refitted = (
        [dequantized_weight(students[refit].get_submodule(n)) for n in names] for refit in ("none", None)
    )
    assert not any(torch.equal(a, b) for a, b in zip(plain, refitted, strict=True))
    assert all(value == value for value in data.task.evaluate(students[None], data).scores().values())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_scores_are_those_of_the_examples(kind, tokenizer):
    data, teacher = ready(kind, tokenizer)
    judged = data.task.evaluate(teacher, data)
    assert isinstance(judged, EvalResult) and judged.count == 12
    whole = judged.scores()
    assert data.task.metric in whole
    assert judged.scores(np.arange(12)) == pytest.approx(whole)
    assert data.task.describe(data)


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        (token_classification, (0.0, 0.5)), (question_answering, (0.0, 0.3)), (masked_lm, (5, 30)), (seq2seq, (2, 12)),
        (image_classification, (0.5, 0.5)), (audio_classification, (0.5, 0.5)), (object_detection, (0.0, 0.0)),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)  # fmt: skip
def test_chance_is_the_level_of_guesses_without_a_look_at_the_inputs(kind, level, tokenizer):
    data, model = ready(kind, tokenizer)
    assert level[0] <= data.task.chance(model, data) <= level[1]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_positions_that_do_not_count_have_no_say(kind, tokenizer):
    """A row alone and the same row beside a longer one have the same signals where it counts."""
    data, teacher = ready(kind, tokenizer)
    if kind is audio_classification:
        pytest.skip("recordings here have one length")
    rows = data.eval if kind is masked_lm else data.train
    lengths = [len(row["input_ids"]) for row in rows] if "input_ids" in rows.column_names else [0] * len(rows)
    short, long = int(np.argmin(lengths)), int(np.argmax(lengths))
    alone, beside = (data.collate([rows[i] for i in pair]) for pair in ([short], [short, long]))
    with torch.no_grad():
        one, other = (data.task.signals(teacher, batch) for batch in (alone, beside))
    here, there = one["logits"][0], other["logits"][0]
    if "mask" in one:
        here, there = here[one["mask"][0]], there[other["mask"][0]]
    elif kind is question_answering:
        there = there[:, : here.shape[1]]
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-4)


def test_bart_learns_as_well(tokenizer):
    raw, model, _ = seq2seq("bart")
    data = task_named("seq2seq").prepare(raw, tokenizer, model.config)
    batch = data.collate([data.train[0], data.train[1]])
    model = randomize_weights_(model).eval()
    with torch.no_grad():
        own = model(**{k: v for k, v in batch.items() if k != "decoder_input_ids"}).loss
        loss = data.task.signals(model, batch)["loss"]
    torch.testing.assert_close(loss, own)


def test_every_task_has_a_class_a_tag_and_a_metric():
    import transformers

    for name in TASKS:
        task = task_named(name)
        assert task.name == name and hasattr(transformers, task.auto_class) and task.metric and task.pipeline_tag


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("B-A I-A O B-A", {(0, 2, "A"), (3, 4, "A")}),
        ("B-A B-A I-A", {(0, 1, "A"), (1, 3, "A")}),
        ("I-A I-B O I-B", {(0, 1, "A"), (1, 2, "B"), (3, 4, "B")}),
        ("O O", set()),
        ("NOUN VERB O NOUN", {(0, 1, "NOUN"), (1, 2, "VERB"), (3, 4, "NOUN")}),
    ],
)
def test_spans_are_counted_as_conlleval_does(labels, expected):
    assert spans(labels.split()) == expected


def test_only_the_first_token_of_a_word_has_its_label(tokenizer):
    data, _ = ready(token_classification, tokenizer)
    for row, words in zip(data.train, data.examples.train["text"], strict=True):
        assert sum(label != -100 for label in row["labels"]) == len(words)


def test_words_and_labels_must_be_as_many(tokenizer):
    raw = examples([{"text": ["a", "b"], "label": ["O"]}] * 12, label="label")
    with pytest.raises(UsageError, match="row 0 has 2 words and 1 labels"):
        task_named("token_classification").prepare(raw, tokenizer, bert_config())


def test_the_answer_is_where_the_labels_point(tokenizer):
    data, _ = ready(question_answering, tokenizer)
    for row, example in zip(data.train, data.examples.train, strict=True):
        start, end = row["labels"]
        text = example["context"][row["offsets"][start][0] : row["offsets"][end][1]]
        assert text == example["answers"]["text"][0]


def test_a_long_text_makes_rows_that_overlap_and_those_with_the_answer_point_to_it(tokenizer):
    text = " ".join(TEXTS[:12]) + " The end."
    answers = {"text": ["end"], "answer_start": [text.rindex("end")]}
    raw = examples([{"text": "What?", "context": text, "answers": answers}] * 12, text_pair="context", label="answers")
    data = task_named("question_answering").prepare(raw, tokenizer, bert_config())
    first = [row for row in data.train if row["example"] == 0]
    assert len(first) > 3
    for row in first:
        start, end = row["labels"]
        if (start, end) == (0, 0):
            assert all(span is None or span[1] <= text.rindex("end") for span in row["offsets"])
        else:
            assert text[row["offsets"][start][0] : row["offsets"][end][1]] == "end"
    assert first[0]["labels"] == [0, 0] != first[-1]["labels"]


def test_a_model_that_knows_the_answer_scores_one(tokenizer):
    data, _ = ready(question_answering, tokenizer)
    task = data.task

    class Oracle(torch.nn.Module):
        device = torch.device("cpu")
        at = 0

        def forward(self, input_ids, **_):
            start, end = torch.zeros(input_ids.shape), torch.zeros(input_ids.shape)
            for number in range(len(input_ids)):
                first, last = data.eval[self.at]["labels"]
                start[number, first] = end[number, last] = 9
                self.at += 1
            return type("Out", (), {"start_logits": start, "end_logits": end})()

    assert task.evaluate(Oracle(), data).scores() == {"f1": 1.0, "exact_match": 1.0}


@pytest.mark.parametrize(
    ("said", "gold", "score"), [("The cat.", "cat", 1.0), ("a big cat", "cat", 2 / 3), ("", "cat", 0.0), ("", "", 1.0)]
)
def test_answers_are_compared_as_squad_does(said, gold, score):
    assert _word_f1(said, gold) == pytest.approx(score)


def test_evaluation_rows_are_hidden_once_and_training_rows_anew(tokenizer):
    data, teacher = ready(masked_lm, tokenizer)
    assert data.task.evaluate(teacher, data).scores() == data.task.evaluate(teacher, data).scores()
    one, other = (data.collate([data.train[i] for i in range(8)])["input_ids"] for _ in range(2))
    assert not torch.equal(one, other)


def test_evaluation_rows_always_hide_a_token_that_is_not_special(tokenizer):
    raw = examples([{"text": text} for text in ("the", "dog", "cat")] * 4)
    data = task_named("masked_lm").prepare(raw, tokenizer, bert_config())
    special = set(tokenizer.all_special_ids)
    for row, text in zip(data.eval, raw.eval["text"], strict=True):
        hidden = [label for label in row["labels"] if label != -100]
        assert hidden and not special & set(hidden)
        assert tokenizer.decode(hidden) == text


@pytest.mark.parametrize("kind", [masked_lm, question_answering])
def test_labels_stay_beside_their_tokens_where_a_tokenizer_pads_on_the_left(kind, tokenizer):
    left = copy.deepcopy(tokenizer)
    left.padding_side = "left"
    batches = []
    for each in (tokenizer, left):
        raw, model, _ = kind()
        data = task_named(kind.__name__).prepare(raw, each, model.config)
        batches.append(data.collate([data.eval[0], data.eval[1], data.eval[2]]))
    one, other = batches
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_answers_of_tasks_that_change_cannot_be_kept(tokenizer, tmp_path):
    data, teacher = ready(masked_lm, tokenizer)
    with pytest.raises(UsageError, match="cannot be cached: it masks other tokens each time"):
        train_student(Distillation(steps=1, cache={"folder": str(tmp_path)}), teacher, data)


def test_images_from_a_folder_for_each_label(tmp_path):
    for name, red in (("dark", 20), ("light", 220)):
        (tmp_path / name).mkdir()
        for number in range(4):
            (tmp_path / name / f"{number}.png").write_bytes(png(red + number))
    loaded = load_examples(DataConfig(train=str(tmp_path), image="image", label="label"))
    assert sorted({*loaded.train["label"], *loaded.eval["label"]}) == ["dark", "light"]
    assert loaded.train.num_rows + loaded.eval.num_rows == 8


def test_a_file_that_is_no_image_or_recording_is_named(tmp_path):
    (tmp_path / "a.png").write_text("text")
    (tmp_path / "a.wav").write_text("text")
    from hf_pe.tasks.image_classification import read_image

    with pytest.raises(UsageError, match=r"a\.png.* cannot be read: cannot identify image"):
        read_image(str(tmp_path / "a.png"))
    with pytest.raises(UsageError, match=r"a\.wav.* cannot be read as a \.wav file"):
        waveform(str(tmp_path / "a.wav"), 16000)


def test_recordings_come_at_the_models_rate_and_as_one_channel(tmp_path):
    from scipy.io import wavfile

    times = np.arange(8000) / 8000
    wave = np.stack([np.sin(6.28 * 100 * times), np.sin(6.28 * 100 * times)], 1)
    wavfile.write(tmp_path / "a.wav", 8000, (wave * 32767).astype(np.int16))
    resampled = waveform(str(tmp_path / "a.wav"), 16000)
    assert resampled.shape == (16000,) and resampled.dtype == np.float32
    assert np.abs(resampled).max() == pytest.approx(1, abs=0.05)
    crossings = (np.diff(np.sign(resampled)) != 0).sum()
    assert crossings == pytest.approx(200, abs=4)


def test_all_targets_masked_is_refused(tokenizer):
    data, teacher = ready(token_classification, tokenizer)
    nothing = data.train.map(lambda row: {"labels": [-100] * len(row["labels"])})
    with pytest.raises(UsageError, match="no training row has a target"):
        Distillation().plan(StageState(teacher, replace(data, train=nothing)))


def rows_without_numbers(rows):
    """The rows as lists, without the number of the example that a row was made from."""
    return [{name: value for name, value in row.items() if name != "example"} for row in rows]


def two_columns():
    rows = [{"text": text, "other": text.replace("The", "a")} for text in TEXTS]
    return examples(rows, text_pair="other"), BertModel(bert_config()), None


def long_contexts():
    raw, model, processor = question_answering()
    rows = raw.train.map(lambda row: {"context": row["context"] + " It is a quiet day in the garden." * 2})
    return replace(raw, train=rows, config=raw.config.model_copy(update={"max_length": 24})), model, processor


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((kind.__name__, kind) for kind in KINDS), ("embedding", two_columns), ("question_answering", long_contexts)],
)
def test_training_rows_that_are_held_out_are_evaluated_and_named(name, kind, tokenizer):
    raw, model, processor = kind()
    data = task_named(name).prepare(raw, processor or tokenizer, model.config)
    data = replace(data, teacher=randomize_weights_(model, 1).eval())
    held_out = data.task.hold_out(data, model.config, 0.5, 9, seed=0)
    assert len(held_out.data.examples.eval) == 9
    assert len(set(held_out.rows)) == len(held_out.rows) < len(data.train) / 2
    kept = data.train.select(held_out.rows)
    assert rows_without_numbers(kept) == rows_without_numbers(held_out.data.train)
    assert data.task.evaluate(data.teacher, held_out.data).scores()[data.task.metric] is not None
    again, other = (data.task.hold_out(data, model.config, 0.5, 9, seed=seed).rows for seed in (0, 1))
    assert again == held_out.rows != other


def test_a_task_with_other_rows_than_examples_holds_none_out(tokenizer):
    data, model = ready(masked_lm, tokenizer)
    with pytest.raises(UsageError, match="does not say which rows"):
        data.task.hold_out(replace(data, train=data.train.select(range(100))), model.config, 0.5, 9, seed=0)
