"""Rounding that a model amplifies does not refuse a cut, and a wrong cut is refused all the same."""

import dataclasses

import pytest
import torch
from torch import nn
from transformers import AutoConfig, BertModel, VitsModel
from transformers.activations import ACT2FN

from hf_pe.anatomy import discover
from hf_pe.dummies.tiny import randomize_weights_, tiny
from hf_pe.verify import comparison
from hf_pe.verify.comparison import TOLERANCE, compare
from hf_pe.verify.equivalence import _pattern


class Wave(nn.Module):
    """Round in a way that depends on the width, and amplify the rounding."""

    def forward(self, hidden):
        width = hidden.shape[-1]
        return torch.sin(1e4 * (hidden / width * width))


@pytest.fixture
def amplifying(monkeypatch):
    """Return a model that amplifies rounding, its FFN axis and the kept units."""
    monkeypatch.setitem(ACT2FN, "wave", Wave)
    model = randomize_weights_(BertModel(tiny(AutoConfig.for_model("bert", hidden_act="wave"))))
    (axis,) = discover(model.config, BertModel).named("ffn")
    return model, axis, _pattern(axis, model)


def test_rounding_that_the_model_amplifies_is_no_wrong_cut(amplifying, monkeypatch):
    errors = []
    ablated = comparison.COMPARISONS["outputs"]
    recording = lambda *case: errors.append(ablated(*case)) or errors[-1]  # noqa: E731
    monkeypatch.setitem(comparison.COMPARISONS, "outputs", recording)
    assert compare(*amplifying).holds
    single, double = (each.error for each in errors)
    assert double <= TOLERANCE < single


def test_a_wrong_cut_of_such_a_model_is_refused(amplifying):
    model, axis, kept = amplifying
    careless = dataclasses.replace(axis, slots=tuple(dataclasses.replace(slot, power=0.5) for slot in axis.slots))
    assert "differ by" in compare(model, careless, kept).reason


def test_a_vocoder_amplifies_rounding():
    """VITS's waveforms differ with other durations, so that only a larger model shows the effect of an ablation."""
    model = randomize_weights_(VitsModel(tiny(AutoConfig.for_model("vits"))))
    (axis,) = discover(model.config, VitsModel).named("ffn")
    assert compare(model, axis, _pattern(axis, model)).error <= TOLERANCE
