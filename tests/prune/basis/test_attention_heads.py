import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    BertForMaskedLM,
    BloomModel,
    GPT2LMHeadModel,
    GPTNeoForCausalLM,
)

from hf_pe.anatomy import EVERYWHERE, discover
from hf_pe.data import load_examples
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.dummies.tiny import randomize_weights_, tiny
from hf_pe.errors import UsageError
from hf_pe.model_spec import ModelSpec
from hf_pe.prune import StructuredPruning
from hf_pe.prune.basis.attention_heads import with_sorted_heads
from hf_pe.prune.statistics.moments import consumer_moments
from hf_pe.recipe import StageState
from hf_pe.regression import pooled
from hf_pe.tasks import CausalLM, MaskedLM
from tests.helpers import TEXTS, taught


def made(model_class, task, tokenizer, **changes):
    config = tiny(AutoConfig.for_model(model_class.config_class.model_type, **changes))
    config.vocab_size, config.max_position_embeddings = 200, 512
    return randomize_weights_(model_class(config)), task.prepare(load_examples(TEXTS), tokenizer, config)


@pytest.mark.parametrize(
    ("model_class", "task"),
    [
        (BertForMaskedLM, MaskedLM()),
        (GPT2LMHeadModel, CausalLM()),
        (BloomModel, CausalLM()),
        (GPTNeoForCausalLM, CausalLM()),
    ],
)
def test_turning_changes_nothing_and_sorts_every_head(model_class, task, tokenizer):
    """Apart (BERT; keys first and unscaled: GPT-Neo), fused one after the other (GPT-2), and head by head (BLOOM)."""
    model, data = made(model_class, task, tokenizer)
    axis = discover(model.config, model_class).named("hidden")[0]
    assert len(axis.groups) == 3 and axis.size_multiple > 1
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(0)  # tokens are masked at random
    moments = consumer_moments(model, axis, data)
    new, own_moments = with_sorted_heads(model, axis, moments)
    inputs = example_inputs(model)
    assert difference(outputs_of(model, inputs), outputs_of(new, inputs)) < 1e-4
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    torch.manual_seed(0)
    after = consumer_moments(new, axis, data)
    for key, folds in after.items():
        for mine, measured in zip(own_moments[key], folds, strict=True):
            torch.testing.assert_close(
                mine.gram, measured.gram, rtol=1e-2, atol=1e-3 * float(measured.gram.abs().max())
            )
    for group in axis.groups:
        for slot in axis.in_group(group) if group != EVERYWHERE else ():
            if slot.consumes:
                weight = slot.of(new.state_dict()).movedim(slot.dim, 0)
                felt = weight.square().sum(1) * pooled(after[slot.key]).gram.diagonal()
                falls = felt.reshape(slot.subgroups, -1).diff(dim=1)
                assert (falls < 1e-3 * felt.max()).all()


def test_what_is_dropped_last_is_what_scores_and_values_need(tokenizer):
    """A head whose scores and values have rank 4 loses nothing when 8 coordinates become 4."""
    model, data = made(BertForMaskedLM, MaskedLM(), tokenizer)
    axis = discover(model.config, BertForMaskedLM).named("hidden")[0]
    size = axis.size // axis.size_multiple
    draw = torch.Generator().manual_seed(0)
    for layer in model.bert.encoder.layer:
        own = layer.attention.self
        for asking in (own.query, own.key, own.value):
            for head in range(axis.size_multiple):
                rows = slice(head * size, (head + 1) * size)
                mix = torch.randn(size, size // 2, generator=draw) @ torch.randn(size // 2, size, generator=draw) / size
                asking.weight.data[rows] = mix @ asking.weight.data[rows]
                asking.bias.data[rows] = mix @ asking.bias.data[rows]
    new, _ = with_sorted_heads(model, axis, consumer_moments(model, axis, data))
    inputs = example_inputs(model)
    whole = outputs_of(new, inputs)
    for group in axis.groups:
        if group != EVERYWHERE:
            own = new.get_submodule(group).self
            gone = [i for i in range(axis.size) if i not in axis.first_units(group, axis.size // 2)]
            for asking in (own.query, own.key, own.value):
                asking.weight.data[gone] = asking.bias.data[gone] = 0
    assert difference(whole, outputs_of(new, inputs)) < 1e-2


def test_heads_that_do_more_are_refused(tokenizer):
    model, data = made(BertForMaskedLM, MaskedLM(), tokenizer)
    axis = discover(model.config, BertForMaskedLM).named("hidden")[0]
    moments = consumer_moments(model, axis, data)
    for layer in model.bert.encoder.layer:
        layer.attention.self.query.register_forward_hook(lambda module, args, output: output.relu())
    with pytest.raises(UsageError, match=r"do more with queries, keys and values.*Leave this axis out"):
        with_sorted_heads(model, axis, moments)


@pytest.mark.parametrize("criterion", ["obs", "obs_kfac", "magnitude_l2"])
def test_a_narrower_bert_by_recipe_is_stock(criterion, tokenizer, tmp_path):
    config = AutoConfig.for_model(
        "bert", hidden_size=64, num_attention_heads=4, intermediate_size=96, num_hidden_layers=2, vocab_size=200
    )
    torch.manual_seed(0)
    data = MaskedLM().prepare(load_examples(TEXTS), tokenizer, config)
    model = taught(BertForMaskedLM(config), data)
    recipe = StructuredPruning(keep={"hidden": 0.6}, criterion=criterion)
    outline, after = recipe.dry_run(ModelSpec(config=config, model_class=BertForMaskedLM))
    assert after.config.hidden_size == 40 and "head_dim" not in after.config.to_dict()
    plan = recipe.plan(StageState(model, data))
    small = recipe.apply(StageState(model, data), plan).model
    assert small.num_parameters() == plan.parameters == outline.parameters
    small.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    inputs = example_inputs(small)
    assert difference(outputs_of(small, inputs), outputs_of(again, inputs)) == 0


def test_a_width_that_the_heads_do_not_divide_is_refused():
    config = AutoConfig.for_model("bert", hidden_size=96, num_attention_heads=12, num_hidden_layers=1)
    spec = ModelSpec(config=config, model_class=AutoModel._model_mapping[type(config)])
    with pytest.raises(
        UsageError, match=r"prune.keep.hidden: the stock config does not allow 64; it allows 24, 48, 72"
    ):
        StructuredPruning(keep={"hidden": 64}).dry_run(spec)
