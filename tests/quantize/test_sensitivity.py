import copy

import pytest
import torch
from transformers import LlamaForCausalLM

from hf_pe.calibration import distance, task_outputs
from hf_pe.data import load_examples
from hf_pe.quantize import BitsAndBytesQuantization
from hf_pe.quantize.sensitivity import estimated, measured
from hf_pe.quantizers.layers import is_linear, plain_linear_layers
from hf_pe.quantizers.registry import dequantized_weight
from hf_pe.recipe import StageState
from hf_pe.tasks import CausalLM
from tests.helpers import TEXTS


@pytest.fixture
def case(llama_folder, tokenizer):
    model = LlamaForCausalLM.from_pretrained(llama_folder).eval()
    data = CausalLM().prepare(load_examples(TEXTS), tokenizer, model.config)
    recipe = BitsAndBytesQuantization(refit="none")
    quantized = recipe.carry_out(StageState(model, data)).model
    return model, quantized, plain_linear_layers(model, recipe.modules_to_not_convert(model)), data


def test_measured_is_the_divergence_with_one_layer_exchanged(case):
    model, quantized, names, data = case
    losses = measured(model, quantized, names, data)
    assert set(losses) == set(names) and all(value > 0 for value in losses.values())
    assert all(is_linear(model.get_submodule(name)) for name in names)
    name = names[3]
    by_hand = copy.deepcopy(model)
    by_hand.get_submodule(name).weight.data = dequantized_weight(quantized.get_submodule(name))
    expected = distance(task_outputs(by_hand, data, by_token=True), task_outputs(model, data, by_token=True))
    assert losses[name] == pytest.approx(expected, rel=0.02)  # the quantized layer multiplies in bfloat16


def test_estimated_is_the_share_of_the_outputs_that_changes(case):
    model, quantized, names, data = case
    losses = estimated(model, quantized, names, data)
    name = names[0]
    layer_inputs = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda m, args, out: layer_inputs.append(args[0].flatten(0, -2))
    )
    with torch.no_grad():
        for batch in data.batches(data.calibration):
            data.task.signals(model, batch)
    handle.remove()
    inputs, weight = torch.cat(layer_inputs), model.get_submodule(name).weight.detach()
    gone = inputs @ (weight - dequantized_weight(quantized.get_submodule(name))).T
    assert losses[name] == pytest.approx(float(gone.square().sum() / (inputs @ weight.T).square().sum()), rel=1e-3)
