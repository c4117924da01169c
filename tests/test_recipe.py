"""The state that a run hands from one recipe to the next."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import BertModel

from hf_pe.calibration.cache import StatisticsKey
from hf_pe.data import load_examples
from hf_pe.recipe import StageState
from hf_pe.tasks import Embedding
from tests.helpers import TEXTS

MOMENTS = StatisticsKey[torch.Tensor]("moments")


@pytest.fixture
def state(bert_folder, tokenizer):
    model = BertModel.from_pretrained(bert_folder).eval()
    data = replace(Embedding().prepare(load_examples(TEXTS), tokenizer, model.config), teacher=model)
    state = StageState(model, data)
    state.statistics.put(model, MOMENTS, torch.ones(2))
    return state


def test_statistics_do_not_outlive_the_rows_they_are_of(state):
    tokenizer = copy.deepcopy(state.processor)
    tokenizer.model_max_length = 8
    other = state.with_processor(tokenizer)
    assert other.processor is tokenizer and other.teacher is state.teacher and other.model is state.model
    assert other.statistics.pop(other.model, MOMENTS) is None
    assert state.statistics.pop(state.model, MOMENTS) is not None, "the state before stays as it was"


def test_statistics_do_not_outlive_their_model(state):
    assert len(state.with_model(copy.deepcopy(state.model)).statistics) == 0
