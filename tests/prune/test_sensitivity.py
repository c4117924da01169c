import copy

import torch
from transformers import AutoConfig, LlamaForCausalLM

from hf_pe.data import load_examples
from hf_pe.prune.sensitivity import least_loss, tried
from hf_pe.tasks import CausalLM
from tests.helpers import TEXTS, taught


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
    rungs = [{"a": size} for size in range(10, 0, -1)]
    (curve,) = tried(model, data, [rungs], lambda s: noisy(model, s["a"]), lambda s: s["a"] / 10)
    assert curve[0].rung == 0 and curve[-1].rung == 9
    losses = [each.loss for each in curve]
    assert losses == sorted(losses) and losses[-1] > 0
    assert [each.cost for each in curve] == [rungs[each.rung]["a"] / 10 for each in curve]
    settings = [{"a": 3}, {"a": 10}, {"a": 6}]
    assert least_loss(model, data, settings, lambda s: noisy(model, s["a"])) == {"a": 10}
    same = least_loss(model, data, [{"a": 1}, {"a": 1}], lambda s: noisy(model, s["a"]))
    assert same == {"a": 1}
