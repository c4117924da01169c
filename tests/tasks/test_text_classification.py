import pytest
from transformers import BertForSequenceClassification

from hf_pe.data import DataConfig, load_examples, load_for_evaluation
from hf_pe.errors import UsageError
from hf_pe.tasks import TextClassification
from tests.helpers import TEXTS


def write(folder, labels):
    rows = [f"{text},{labels[i % len(labels)]}" for i, text in enumerate(TEXTS)]
    (folder / "a.csv").write_text("\n".join(["text,label", *rows]))
    return load_for_evaluation(DataConfig(train=str(folder / "a.csv"), label="label"))


@pytest.mark.parametrize("labels", [("negative", "positive"), (0, 1), (0.0, 1.0)])
def test_labels_by_name_and_by_number(classifier_folder, tokenizer, tmp_path, labels):
    model = BertForSequenceClassification.from_pretrained(classifier_folder).eval()
    data = TextClassification().prepare(write(tmp_path, labels), tokenizer, model.config)
    assert data.train["labels"][:4] == [0, 1, 0, 1]
    scores = TextClassification().evaluate(model, data).scores()
    assert 0 <= scores["accuracy"] <= 1
    assert set(scores) == {"accuracy", "f1_macro"}


def test_accuracy_is_the_share_of_agreement(classifier_folder, tokenizer, tmp_path):
    model = BertForSequenceClassification.from_pretrained(classifier_folder).eval()
    data = TextClassification().prepare(write(tmp_path, (0, 1)), tokenizer, model.config)
    import torch

    with torch.no_grad():
        said = [int(TextClassification().signals(model, b)["logits"].argmax()) for b in data.batches(data.eval, 1)]
    share = sum(a == b for a, b in zip(said, data.eval["labels"], strict=True)) / len(said)
    assert TextClassification().evaluate(model, data).scores()["accuracy"] == pytest.approx(share)


def test_a_label_the_model_does_not_know(classifier_folder, tokenizer, tmp_path):
    config = BertForSequenceClassification.from_pretrained(classifier_folder).config
    with pytest.raises(UsageError, match="label 'maybe' is none of the model's: negative, positive"):
        TextClassification().prepare(write(tmp_path, ("maybe",)), tokenizer, config)


def test_the_label_column_must_be_named(classifier_folder, tokenizer):
    config = BertForSequenceClassification.from_pretrained(classifier_folder).config
    with pytest.raises(UsageError, match=r"data\.label"):
        TextClassification().prepare(load_examples(TEXTS), tokenizer, config)
