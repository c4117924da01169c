"""Looking at attention changes no answer, whatever a family adds to it."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, BertModel

from hf_pe.distill.attention import NAME, recordable, recorded_attentions
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.dummies.tiny import randomize_weights_, tiny
from tests.helpers import bert_config

FAMILIES = (
    "bert",
    "llama",
    "qwen2",
    "gemma2",
    "gpt2",
    "vit",
    "distilbert",
    "gpt_oss",
    "mistral",
    "roberta",
    "gemma3_text",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_stay_the_same_and_every_layer_is_seen(family):
    config = tiny(AutoConfig.for_model(family))
    model = randomize_weights_(AutoModel.from_config(config)).eval()
    inputs = example_inputs(model)
    plain = outputs_of(model, inputs)
    before = model.config._attn_implementation
    with recordable(model), recorded_attentions() as recorded:
        assert model.config._attn_implementation == NAME
        assert difference(plain, outputs_of(model, inputs)) < 1e-5
    assert model.config._attn_implementation == before
    assert len(recorded) == model.config.num_hidden_layers
    for each in recorded:
        assert each.weights.shape[1] == model.config.num_attention_heads
        assert (each.weights.sum(-1) <= 1 + 1e-5).all() and (each.weights.sum(-1) > 0).all()


def test_padding_is_not_looked_at():
    model = randomize_weights_(BertModel(bert_config())).eval()
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    with recordable(model), recorded_attentions() as recorded, torch.no_grad():
        model(input_ids=torch.arange(5)[None] + 6, attention_mask=mask)
    for each in recorded:
        assert each.allowed.expand(1, 1, 5, 5)[0, 0, 0].tolist() == mask[0].bool().tolist()
        assert each.weights[..., 3:].abs().max() < 1e-6


def test_nothing_is_kept_outside():
    model = randomize_weights_(BertModel(bert_config())).eval()
    with recordable(model):
        model(input_ids=torch.arange(5)[None] + 6)
        with recorded_attentions() as recorded:
            pass
    assert recorded == []
