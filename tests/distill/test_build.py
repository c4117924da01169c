import copy

import pytest
import torch
from transformers import BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from hf_pe.distill.build import ObjectiveSettings, build
from hf_pe.distill.student_outputs import agreement_of
from hf_pe.distill.teachers.live import LiveTeacher
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import UsageError
from hf_pe.tasks import CausalLM, TextClassification
from tests.helpers import bert_config


def test_a_model_with_one_output_is_not_distilled():
    """The KL divergence over one output is 0 whatever the student says."""
    model = BertForSequenceClassification(bert_config(num_labels=1))
    batch = {"input_ids": torch.tensor([[2, 5, 3]]), "labels": torch.tensor([0])}
    with pytest.raises(UsageError, match="got one with 1 output that predicts a number"):
        build(model, [LiveTeacher(model)], TextClassification(), batch, ObjectiveSettings(temperature=1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_attention_of_models_in_16_bits_can_be_looked_at(dtype):
    """Another kernel rounds elsewhere, which moves 16-bit answers by more than a thousandth."""
    config = LlamaConfig(
        vocab_size=200, hidden_size=64, intermediate_size=192, num_hidden_layers=12, num_attention_heads=4
    )
    model = randomize_weights_(LlamaForCausalLM(config)).to(dtype)
    ids = torch.arange(6, 166).reshape(5, 32)
    settings = ObjectiveSettings({"attention": 1.0}, temperature=1.0)
    batch = {"input_ids": ids, "labels": ids}
    teacher = LiveTeacher(copy.deepcopy(model))
    assert build(model, [teacher], CausalLM(), batch, settings).weights == {"attention": 1.0}


def test_one_output_has_no_agreement():
    assert agreement_of({"logits": torch.ones(4, 1)}, {"logits": -torch.ones(4, 1)}) is None
