import torch
from transformers import AlbertConfig, AlbertModel, BertModel

from hf_pe.data import load_examples
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.quantize.inputs import _block, inputs_of
from hf_pe.quantizers.layers import plain_linear_layers
from hf_pe.tasks import Embedding
from tests.helpers import TEXTS, bert_config


def test_blocks_are_the_members_of_the_outermost_stack():
    assert _block("encoder.layer.3.attention.self.query") == "encoder.layer.3"
    assert _block("encoder.layers.1.blocks.0.mlp.fc1") == "encoder.layers.1"
    assert _block("pooler.dense") == "pooler.dense"


def watched(model, name, data):
    """Sum of x x^T over all positions that are not padding, all calls counted."""
    layer_inputs = []

    def keep(module, args, out):
        layer_inputs.append(args[0])

    handle = model.get_submodule(name).register_forward_hook(keep)
    total, count = 0, 0
    with torch.no_grad():
        for batch in data.batches(data.calibration, 8):
            layer_inputs.clear()
            data.task.signals(model, batch)
            for each in layer_inputs:
                rows = each[batch["attention_mask"].bool()] if each.ndim == 3 else each
                total, count = total + rows.T @ rows, count + len(rows)
    handle.remove()
    return total, count


def test_moments_are_of_all_that_flows_in_also_where_a_block_runs_again(tokenizer):
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    albert = AlbertModel(AlbertConfig(vocab_size=200, embedding_size=64, pad_token_id=0, **sizes))
    for model in (randomize_weights_(BertModel(bert_config())).eval(), randomize_weights_(albert).eval()):
        data = Embedding().prepare(load_examples(TEXTS), tokenizer, model.config)
        names = plain_linear_layers(model)
        moments_by_layer = dict(inputs_of(model, names, data))
        assert {n for n in names if "pooler" not in n} <= set(moments_by_layer)
        for name in (names[0], names[-2]):
            total, count = watched(model, name, data)
            assert moments_by_layer[name].count == count
            assert torch.allclose(moments_by_layer[name].xx, total, rtol=1e-3, atol=1e-2)
