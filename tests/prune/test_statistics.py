import pytest
import torch
from transformers import BertModel

from hf_pe.anatomy import discover
from hf_pe.data import load_examples
from hf_pe.prune.statistics import block_influence, consumer_moments
from hf_pe.tasks import Embedding
from tests.helpers import TEXTS


@pytest.fixture
def work(bert_folder, tokenizer):
    model = BertModel.from_pretrained(bert_folder).eval()
    return model, Embedding().prepare(load_examples(TEXTS), tokenizer, model.config)


def test_moments_are_those_of_the_real_inputs_without_padding(work):
    model, data = work
    axis = discover(model.config, BertModel).named("ffn")[0]
    found = consumer_moments(model, axis, data)
    seen = []
    hook = model.encoder.layer[1].output.dense.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        for row in data.calibration:  # one by one: nothing is padded
            model(
                input_ids=torch.tensor([row["input_ids"]]),
                attention_mask=torch.tensor([row["attention_mask"]]),
            )
    hook.remove()
    rows = torch.cat([s[0] for s in seen])
    moments = found["encoder.layer.1.output.dense.weight"]
    assert len(found) == 4
    assert torch.allclose(moments.mean, rows.mean(0), atol=1e-4)
    assert torch.allclose(moments.gram, rows.T @ rows / len(rows), atol=1e-3)


def test_a_layer_that_does_nothing_has_no_influence(work):
    model, data = work
    model.encoder.layer[2].register_forward_hook(lambda module, args, output: args[0])
    axis = discover(model.config, BertModel).named("layers")[0]
    influence = block_influence(model, axis, data)
    assert influence[2] == pytest.approx(0, abs=1e-5)
    assert all(influence[i] > 1e-3 for i in (0, 1, 3))
