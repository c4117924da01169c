"""The report on a stock Trainer for every task, with the collators that transformers has for it."""

import copy

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

import hf_pe.measure
from hf_pe import CompressionReport, UsageError
from hf_pe.callbacks.agreement import _compared, teacher_agreement
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.report import read_report
from tests.helpers import TEXTS, bert_config, small_detr

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}


def embedding(tokenizer):
    return BertModel(bert_config(num_hidden_layers=1)), texts(tokenizer), DataCollatorWithPadding(tokenizer)


def causal_lm(tokenizer):
    model = LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=200, pad_token_id=0))
    return model, texts(tokenizer), DataCollatorForLanguageModeling(tokenizer, mlm=False)


def text_classification(tokenizer):
    rows = texts(tokenizer, lambda number: {"labels": number % 2})
    return BertForSequenceClassification(bert_config(num_hidden_layers=1)), rows, DataCollatorWithPadding(tokenizer)


def token_classification(tokenizer):
    rows = [row | {"labels": [n % 2 for n, _ in enumerate(row["input_ids"])]} for row in texts(tokenizer)]
    model = BertForTokenClassification(bert_config(num_hidden_layers=1))
    return model, rows, DataCollatorForTokenClassification(tokenizer)


def question_answering(tokenizer):
    rows = texts(tokenizer, lambda number: {"start_positions": 1, "end_positions": 2})
    return BertForQuestionAnswering(bert_config(num_hidden_layers=1)), rows, DataCollatorWithPadding(tokenizer)


def masked_lm(tokenizer):
    return (
        BertForMaskedLM(bert_config(num_hidden_layers=1)),
        texts(tokenizer),
        DataCollatorForLanguageModeling(tokenizer),
    )


def seq2seq(tokenizer):
    config = T5Config(
        vocab_size=200, d_model=32, d_ff=64, d_kv=8, num_layers=1, num_heads=4, pad_token_id=0, eos_token_id=3,
        decoder_start_token_id=0,
    )  # fmt: skip
    rows = [row | {"labels": row["input_ids"][:4]} for row in texts(tokenizer)]
    return T5ForConditionalGeneration(config), rows, DataCollatorForSeq2Seq(tokenizer)  # makes no decoder_input_ids


def image_classification(tokenizer):
    rows = [{"pixel_values": torch.randn(3, 16, 16), "labels": number % 2} for number in range(8)]
    return ViTForImageClassification(ViTConfig(**SIZES, image_size=16, patch_size=8, num_labels=2)), rows, None


def audio_classification(tokenizer):
    config = Wav2Vec2Config(
        **SIZES, conv_dim=(16, 16), conv_stride=(8, 8), conv_kernel=(10, 8), num_feat_extract_layers=2,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, num_labels=2, classifier_proj_size=16,
        mask_time_prob=0.0, layerdrop=0.0,
    )  # fmt: skip
    rows = [{"input_values": torch.randn(1600), "labels": number % 2} for number in range(8)]
    return Wav2Vec2ForSequenceClassification(config), rows, None


def object_detection(tokenizer):
    box = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]])}
    rows = [{"pixel_values": torch.randn(3, 32, 32), "labels": box} for _ in range(8)]

    def collate(rows):
        return {"pixel_values": torch.stack([r["pixel_values"] for r in rows]), "labels": [r["labels"] for r in rows]}

    return small_detr(num_labels=2), rows, collate


KINDS = {
    each.__name__: each
    for each in (
        embedding, causal_lm, text_classification, token_classification, question_answering, masked_lm, seq2seq,
        image_classification, audio_classification, object_detection,
    )
}  # fmt: skip


def texts(tokenizer, targets=lambda number: {}):
    return [{**tokenizer(text), **targets(number)} for number, text in enumerate(TEXTS[:8])]


class Silent(Trainer):
    """Trains a model without a head too, which has no loss of its own."""

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        out = model(**inputs)
        loss = out.loss if "loss" in out else out[0].square().mean()
        return (loss, out) if return_outputs else loss


@pytest.fixture(autouse=True)
def _without_flops(monkeypatch):
    monkeypatch.setattr(hf_pe.measure, "flops", lambda *_, **__: None)


def trained(kind, tokenizer, out, student=None, sets=None):
    model, rows, collate = KINDS[kind](tokenizer)
    teacher = randomize_weights_(model, 1).eval()
    args = TrainingArguments(
        str(out), max_steps=1, eval_strategy="steps", eval_steps=1, save_strategy="no", report_to="none", use_cpu=True,
        disable_tqdm=True, learning_rate=0.0, per_device_train_batch_size=4, remove_unused_columns=False,
        prediction_loss_only=True,
    )  # fmt: skip
    report = CompressionReport(teacher, base_model="someone/large", license="mit")
    Silent(
        model=copy.deepcopy(teacher) if student is None else student,
        args=args,
        train_dataset=rows,
        eval_dataset=rows if sets is None else {name: rows[:count] for name, count in sets.items()},
        data_collator=collate,
        callbacks=[report],
    ).train()
    return read_report(out), teacher, DataLoader(rows, batch_size=4, collate_fn=collate)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_agrees_with_itself_and_less_with_another_for_every_task(kind, tokenizer, tmp_path):
    report, teacher, loader = trained(kind, tokenizer, tmp_path)
    assert report.task == kind
    assert report.after.quality["teacher_agreement"] == pytest.approx(1)
    others = (randomize_weights_(copy.deepcopy(teacher), seed) for seed in (5, 6, 7))
    assert min(teacher_agreement(other, teacher, loader, 8) for other in others) < 0.9


def test_what_a_causal_model_predicts_counts_where_the_next_token_has_a_label(tokenizer):
    model, rows, _ = causal_lm(tokenizer)
    ids = torch.tensor([rows[0]["input_ids"]])
    labels = ids.clone()
    labels[:, :3] = -100
    weights = _compared(model.eval(), model, {"input_ids": ids, "labels": labels}).weights
    assert weights.tolist() == [[0, 0] + [1] * (ids.shape[1] - 3) + [0]]


def test_an_answer_is_never_sought_in_the_padding(tokenizer):
    model = randomize_weights_(question_answering(tokenizer)[0])
    batch = {k: torch.tensor([v]) for k, v in tokenizer(TEXTS[0], padding="max_length", max_length=40).items()}
    batch["attention_mask"][:, 1:] = 0
    other = randomize_weights_(copy.deepcopy(model), 3)
    assert _compared(model, other, batch).values.tolist() == [[1, 1]], "one token is left"


def test_bart_is_no_masked_language_model(tokenizer):
    from transformers import BartConfig, BartForConditionalGeneration

    from hf_pe.callbacks.compression_report import use_of

    sizes = {f"{part}_{name}": 1 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    model = BartForConditionalGeneration(BartConfig(vocab_size=20, d_model=8, **sizes))
    assert use_of(model).auto_class == "AutoModelForSeq2SeqLM"


def test_several_evaluation_sets_are_one_report(tokenizer, tmp_path):
    report, _, _ = trained("text_classification", tokenizer, tmp_path, sets={"easy": 4, "hard": 2})
    assert report.data.eval_rows == 6
    assert {"easy_loss", "hard_loss", "teacher_agreement"} <= report.after.quality.keys()


def test_embeddings_of_another_width_are_refused_before_training(tokenizer, tmp_path):
    student = BertModel(bert_config(num_hidden_layers=1, hidden_size=32))
    with pytest.raises(UsageError, match="hidden states are 32 wide and the teacher's 64"):
        trained("embedding", tokenizer, tmp_path, student)
    assert not list(tmp_path.iterdir())
