import pytest
import torch
from transformers import BertForSequenceClassification

from hf_pe.distill.build import build
from hf_pe.distill.objective import Live, _agreement
from hf_pe.errors import UsageError
from hf_pe.tasks import TextClassification
from tests.helpers import bert_config


def test_a_model_with_one_output_is_not_distilled():
    """The KL divergence over one output is 0 whatever the student says."""
    model = BertForSequenceClassification(bert_config(num_labels=1))
    batch = {"input_ids": torch.tensor([[2, 5, 3]]), "labels": torch.tensor([0])}
    with pytest.raises(UsageError, match="got one with 1 output that predicts a number"):
        build(model, [Live(model)], TextClassification(), batch, losses={}, temperature=1.0, beta=0.5, layers="uniform")


def test_one_output_has_no_agreement():
    assert _agreement({"logits": torch.ones(4, 1)}, {"logits": -torch.ones(4, 1)}) is None
