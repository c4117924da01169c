"""An axis kind takes one record, and a config field that says its size: all else asks the record."""

import dataclasses

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from hf_pe import StructuredPruning, UsageError
from hf_pe.anatomy import KINDS, Axis, AxisKind, discover
from hf_pe.anatomy.fields import AXIS_OF_FIELD
from hf_pe.data import load_examples
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.dummies.tiny import randomize_weights_, tiny
from hf_pe.recipe import StageState
from hf_pe.tasks.embedding import Embedding
from hf_pe.verify.ablate import ABLATIONS
from hf_pe.verify.comparison import COMPARISONS
from hf_pe.verify.equivalence import verify_cut
from tests.helpers import TEXTS


def remember_half_(change):
    """Change what follows in the made-up config: each token recalls half of the memories."""
    change.holder.recalled = change.size // 2


MEMORIES = AxisKind("memories", cut_order=4, tiny_size=12, is_rounded=True, resize_=remember_half_)


class MemoryConfig(PretrainedConfig):
    model_type = "made_up_memory"

    def __init__(self, hidden_size=32, memory_count=64, recalled=32, num_hidden_layers=2, vocab_size=99, **rest):
        self.hidden_size, self.num_hidden_layers, self.vocab_size = hidden_size, num_hidden_layers, vocab_size
        self.memory_count, self.recalled = memory_count, recalled
        super().__init__(**rest)


class Memory(nn.Module):
    """Adds to each state the memories that it resembles."""

    def __init__(self, config):
        super().__init__()
        self.keys = nn.Linear(config.hidden_size, config.memory_count, bias=False)
        self.contents = nn.Linear(config.memory_count, config.hidden_size)

    def forward(self, states):
        return states + self.contents(torch.sigmoid(self.keys(states)) * self.keys(states))


class MemoryModel(PreTrainedModel):
    config_class = MemoryConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Memory(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def forward(self, input_ids=None, attention_mask=None, **rest):
        states = self.embed_tokens(input_ids)
        for layer in self.layers:
            states = layer(states)
        return BaseModelOutput(last_hidden_state=states)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(KINDS, MEMORIES.name, MEMORIES)  # the one line
    monkeypatch.setitem(AXIS_OF_FIELD, "memory_count", MEMORIES.name)  # what the made-up config calls its size


def test_it_is_discovered_and_verified(registered):
    config = MemoryConfig()
    (axis,) = discover(config, MemoryModel).named("memories")
    assert (axis.kind, axis.size, axis.native) == (MEMORIES, 64, True)
    assert axis.groups == ("layers.0", "layers.1")
    assert tiny(config).memory_count == MEMORIES.tiny_size
    verification = verify_cut(config, MemoryModel, axis)
    assert verification.holds, verification.reason


def test_a_prune_recipe_cuts_it_and_the_result_reloads(registered, tokenizer, tmp_path):
    model = randomize_weights_(MemoryModel(MemoryConfig(vocab_size=len(tokenizer))))
    data = Embedding().prepare(load_examples(TEXTS), tokenizer, model.config)
    recipe = StructuredPruning(keep={"memories": 0.5, "hidden": 0.75})
    plan = recipe.plan(StageState(model, data))
    assert [*plan.kept] == ["hidden", "memories"], "its turn comes last"
    smaller = recipe.apply(StageState(model, data), plan).model
    assert (smaller.config.memory_count, smaller.config.recalled, smaller.config.hidden_size) == (32, 16, 24)
    assert smaller.num_parameters() == plan.parameters
    smaller.save_pretrained(tmp_path)
    again, inputs = MemoryModel.from_pretrained(tmp_path).eval(), example_inputs(smaller)
    assert again.config.memory_count == 32 and difference(outputs_of(smaller, inputs), outputs_of(again, inputs)) == 0


def test_a_recipe_that_names_it_is_refused_where_a_model_has_none(registered, tokenizer):
    model = randomize_weights_(MemoryModel(MemoryConfig(vocab_size=len(tokenizer))))
    data = Embedding().prepare(load_examples(TEXTS), tokenizer, model.config)
    with pytest.raises(UsageError, match=r"has no axis 'memoires'.*memories"):
        StructuredPruning(keep={"memoires": 0.5}).plan(StageState(model, data))


def test_without_its_record_no_such_axis_exists():
    assert not discover(MemoryConfig(memory_count=48), MemoryModel).named("memories")
    with pytest.raises(ValueError, match="'memories' names no kind of axis; expected one of layers, ffn, "):
        Axis("memories", "memory_count", 64, ())


def test_what_the_records_name_exists():
    for kind in KINDS.values():
        assert kind.ablation in ABLATIONS and kind.comparison in COMPARISONS
        assert kind.inside_experts in ("", *KINDS)
    assert {*AXIS_OF_FIELD.values()} <= {*KINDS}
    assert len({kind.name for kind in KINDS.values()}) == len(KINDS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        KINDS["ffn"].cut_order = 2
