import copy

import datasets
import pytest
import torch
from transformers import AutoConfig, BertForSequenceClassification, BertModel, LlamaForCausalLM

from hf_pe.anatomy import discover
from hf_pe.calibration import distance, task_outputs
from hf_pe.data import DataConfig, Examples, load_examples
from hf_pe.measure import parameters
from hf_pe.prune import StructuredPruning
from hf_pe.prune.sizes.sensitivity import greedy_depth_order, least_loss, sensitivity_curves
from hf_pe.recipe import StageState
from hf_pe.surgery import cut
from hf_pe.tasks import CausalLM, Embedding, TextClassification
from tests.helpers import TEXTS, taught


@pytest.fixture
def deep(classifier_folder, tokenizer):
    model = BertForSequenceClassification.from_pretrained(classifier_folder).eval()
    rows = datasets.Dataset.from_dict({"text": TEXTS, "label": [i % 2 for i in range(len(TEXTS))]})
    examples = Examples(rows, rows, DataConfig(train="x", label="label", calibration=32), "")
    data = TextClassification().prepare(examples, tokenizer, model.config)
    (axis,) = discover(model.config, type(model)).named("layers")
    return model, data, axis


def noisy(model, size):
    """The model with noise that grows as the size falls."""
    torch.manual_seed(0)
    made = copy.deepcopy(model)
    for parameter in made.parameters():
        parameter.data += (1 - size / 10) * parameter.std() * torch.randn_like(parameter)
    return made.eval()


def test_losses_of_rungs_never_fall_and_the_least_is_found(llama_folder, tokenizer):
    config = AutoConfig.from_pretrained(llama_folder)
    data = CausalLM().prepare(load_examples(TEXTS), tokenizer, config)
    torch.manual_seed(0)
    model = taught(LlamaForCausalLM(config), data)
    sizes = [{"ffn": size} for size in range(10, 0, -1)]
    (curve,) = sensitivity_curves(model, data, [sizes], lambda s: noisy(model, s["ffn"]), lambda s: s["ffn"] / 10)
    assert curve[0].step == 0 and curve[-1].step == 9
    losses = [each.loss for each in curve]
    assert losses == sorted(losses) and losses[-1] > 0
    assert [each.cost for each in curve] == [sizes[each.step]["ffn"] / 10 for each in curve]
    settings = [{"ffn": 3}, {"ffn": 10}, {"ffn": 6}]
    assert least_loss(model, data, settings, lambda s: noisy(model, s["ffn"])) == {"ffn": 10}
    same = least_loss(model, data, [{"ffn": 1}, {"ffn": 1}], lambda s: noisy(model, s["ffn"]))
    assert same == {"ffn": 1}


def test_layers_go_one_by_one_where_they_are_missed_least(deep):
    """By hand: of all layers the one without which the answers stay nearest, then of all pairs with it."""
    model, data, axis = deep
    original = task_outputs(model, data)

    def loss(*gone):
        stack = [i for i in range(axis.size) if i not in gone]
        return distance(task_outputs(cut(model, axis, {axis.groups[0]: stack}), data), original)

    first = min(range(4), key=loss)
    second = min((i for i in range(4) if i != first), key=lambda i: loss(first, i))
    before = copy.deepcopy(model.state_dict())
    assert greedy_depth_order(model, axis, range(4), 2, data, []) == [first, second]
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())
    kept = StructuredPruning(keep={"layers": 2}, depth="greedy").plan(StageState(model, data)).kept["layers"]
    assert list(kept.values()) == [sorted({0, 1, 2, 3} - {first, second})]


def test_fewer_layers_go_on_where_more_left_off(deep):
    model, data, axis = deep
    known = []
    one = list(greedy_depth_order(model, axis, range(4), 1, data, known))
    asked = []
    hook = model.register_forward_hook(lambda *_: asked.append(1))
    three = greedy_depth_order(model, axis, range(4), 3, data, known)
    assert three[:1] == one and len(three) == 3
    again = len(asked)
    assert greedy_depth_order(model, axis, range(4), 2, data, known) == three and len(asked) == again
    hook.remove()


def test_an_embeddings_width_is_an_axis_among_others(bert_folder, tokenizer):
    """Narrower embeddings are compared by what they say of pairs."""
    model = BertModel.from_pretrained(bert_folder).eval()
    data = Embedding().prepare(load_examples(TEXTS), tokenizer, model.config)
    recipe = StructuredPruning(budget={"parameters": 0.7}, axes=("ffn", "hidden"))
    plan = recipe.plan(StageState(model, data))
    small = recipe.apply(StageState(model, data), plan).model
    assert parameters(small).without_embeddings <= 0.7 * parameters(model).without_embeddings
