import pytest
import torch
from transformers import AutoModel, BertModel, Gemma3TextConfig, GPTNeoXConfig, LlamaConfig

from hf_pe.anatomy import discover
from hf_pe.calibration.gradients import consumer_gradients
from hf_pe.calibration.influence import block_influence
from hf_pe.data import load_examples
from hf_pe.prune.statistics.moments import consumer_moments, consumer_moments_by_block, moments_bytes
from hf_pe.regression import pooled
from hf_pe.tasks import Embedding
from tests.helpers import TEXTS


@pytest.fixture
def work(bert_folder, tokenizer):
    model = BertModel.from_pretrained(bert_folder).eval()
    return model, Embedding().prepare(load_examples(TEXTS), tokenizer, model.config)


def test_moments_are_those_of_the_real_inputs_without_padding(work):
    model, data = work
    axis = discover(model.config, BertModel).named("ffn")[0]
    block = model.encoder.layer[1]
    plain, weighted = (consumer_moments(model, axis, data, weighted=weighted) for weighted in (False, True))
    given, read, gives = [], [], []
    hooks = [
        block.attention.output.LayerNorm.register_forward_hook(lambda m, args, out: given.append(out)),
        block.output.dense.register_forward_pre_hook(lambda m, args: read.append(args[0])),
        block.output.dense.register_forward_hook(lambda m, args, out: gives.append(out)),
    ]
    with torch.no_grad():
        for row in data.calibration:  # one by one: nothing is padded
            model(
                input_ids=torch.tensor([row["input_ids"]]),
                attention_mask=torch.tensor([row["attention_mask"]]),
            )
    for hook in hooks:
        hook.remove()
    rows, before, out = (torch.cat([s[0] for s in parts]) for parts in (read, given, gives))
    turned = 1 - torch.cosine_similarity(before, before + out, dim=-1) ** 2
    for by_slot, weight in ((plain, torch.ones(len(rows))), (weighted, turned / out.square().mean(-1))):
        folds = by_slot["encoder.layer.1.output.dense.weight"]
        moments = pooled(folds)
        assert len(by_slot) == 4
        assert len(folds) == 2
        assert sum(f.count for f in folds) == moments.count == pytest.approx(float(weight.sum()), rel=1e-4)
        assert torch.allclose(moments.x / moments.count, weight @ rows / weight.sum(), atol=1e-4)
        assert torch.allclose(moments.gram, (rows.T * weight) @ rows / weight.sum(), atol=1e-3)


@pytest.fixture
def data(tokenizer):
    return Embedding().prepare(load_examples(TEXTS), tokenizer, None)


@pytest.mark.parametrize(
    ("config_class", "fields", "norm", "after"),
    [
        (LlamaConfig, {}, "post_attention_layernorm", None),
        (Gemma3TextConfig, {"head_dim": 8}, "pre_feedforward_layernorm", "post_feedforward_layernorm"),
        (GPTNeoXConfig, {"use_parallel_residual": False}, "post_attention_layernorm", None),
    ],
)
def test_tokens_count_by_the_state_that_their_output_is_added_to(config_class, fields, norm, after, data, tokenizer):
    """Where no norm follows at once, by the root of its size too; a norm of the output belongs to the output."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = config_class(vocab_size=len(tokenizer), pad_token_id=0, **shape, **fields)
    model = AutoModel.from_config(config).eval()
    axis = discover(config, type(model)).named("ffn")[0]
    key = next(slot for slot in axis.slots if slot.consumes and ".1." in slot.name)
    moments = pooled(consumer_moments(model, axis, data, weighted=True)[key.name])
    block, tensors = model.layers[1], {}
    ffn = model.get_submodule(key.name.rpartition(".")[0])

    def read(name):
        return lambda module, args, out: tensors.setdefault(name, []).append(args[0])

    def given(name):
        return lambda module, args, out: tensors.setdefault(name, []).append(out)

    hooks = [
        getattr(block, norm).register_forward_hook(read("state")),
        ffn.register_forward_hook(read("reads")),
        ffn.register_forward_hook(given("gives")),
        *([] if after is None else [getattr(block, after).register_forward_hook(given("added"))]),
    ]
    with torch.no_grad():
        for row in data.calibration:  # one by one: nothing is padded
            model(**{name: torch.tensor([row[name]]) for name in ("input_ids", "attention_mask")})
    for hook in hooks:
        hook.remove()
    state, reads, gives = (torch.cat([part[0] for part in tensors[name]]) for name in ("state", "reads", "gives"))
    added = torch.cat([part[0] for part in tensors["added"]]) if after is not None else gives
    sine = 1 - torch.cosine_similarity(state, state + added, dim=-1) ** 2
    weight = sine / gives.square().mean(-1) * (state + added).square().mean(-1).sqrt()
    assert moments.count == pytest.approx(float(weight.sum()), rel=1e-3)
    assert torch.allclose(moments.x / moments.count, weight @ reads / weight.sum(), atol=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_block_by_block_gives_the_same_moments_one_block_at_a_time(work, weighted):
    model, data = work
    axis = discover(model.config, BertModel).named("ffn")[0]
    whole = consumer_moments(model, axis, data, weighted=weighted)
    assert sum(f.xx.numel() * 4 for folds in whole.values() for f in folds) == moments_bytes(model, axis)
    parts = list(consumer_moments_by_block(model, axis, data, weighted=weighted))
    assert [len(part) for part in parts] == [1, 1, 1, 1]
    for name, folds in (item for part in parts for item in part.items()):
        for one, other in zip(folds, whole[name], strict=True):
            assert one.count == other.count
            assert torch.equal(one.xx, other.xx)


def test_slopes_are_the_loss_differences_of_a_gate(work):
    model, data = work
    axis = discover(model.config, BertModel).named("ffn")[0]
    name = "encoder.layer.2.output.dense.weight"
    gradients = consumer_gradients(model, axis, data)[name]
    gates = gradients.gates
    assert gradients.outputs.shape == (model.config.hidden_size,) * 2
    assert torch.linalg.eigvalsh(gradients.outputs).min() > -1e-4
    assert gates.shape == (len(data.calibration), axis.size)
    row = next(data.batches(data.calibration, 1))
    target = torch.randn(1, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    weight = model.get_parameter(name)
    step = 1e-2

    def loss(factor):
        kept = weight.data.clone()
        weight.data[:, 5] *= factor
        with torch.no_grad():
            value = (data.task.signals(model, row)["embeddings"] * target).sum()
        weight.data = kept
        return float(value)

    assert float(gates[0, 5]) == pytest.approx((loss(1 + step) - loss(1 - step)) / (2 * step), rel=0.02, abs=1e-5)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_layer_that_does_nothing_has_no_influence(work):
    model, data = work
    model.encoder.layer[2].register_forward_hook(lambda module, args, output: args[0])
    axis = discover(model.config, BertModel).named("layers")[0]
    influence = block_influence(model, axis, data)
    assert influence[2] == pytest.approx(0, abs=1e-5)
    assert all(influence[i] > 1e-3 for i in (0, 1, 3))
