import copy
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BertModel, LlamaConfig, LlamaForCausalLM

from hf_pe.anatomy import discover
from hf_pe.data import load_examples
from hf_pe.errors import UsageError
from hf_pe.instance import difference, lively, outputs_of, tiny
from hf_pe.prune import StructuredPruning
from hf_pe.prune.in_order import repair_in_order_
from hf_pe.tasks import CausalLM, Embedding, model_inputs
from tests.helpers import TEXTS


def ready(task, model, tokenizer, length=32):
    examples = load_examples(TEXTS)
    examples = replace(examples, config=examples.config.model_copy(update={"max_length": length}))
    return replace(task.prepare(examples, tokenizer, model.config), teacher=model)


def error(student, teacher, data):
    batch = model_inputs(next(data.batches(data.calibration, 64)))
    return difference(outputs_of(teacher, batch), outputs_of(student, batch))


@pytest.mark.parametrize("kind", ["post-norm", "pre-norm"])
def test_it_comes_nearer_to_the_original_than_repair_at_once(kind, bert_folder, llama_folder, tokenizer):
    found = {"least_squares": 0.0, "in_order": 0.0}
    for seed in range(3):
        if kind == "post-norm":
            model = BertModel.from_pretrained(bert_folder)
        else:  # untrained: what a lively decoder's layers do is too much of a lottery for 100 tokens to mend
            torch.manual_seed(seed)
            model = LlamaForCausalLM(LlamaConfig.from_pretrained(llama_folder))
        data = ready(Embedding() if kind == "post-norm" else CausalLM(), model.eval(), tokenizer)
        for repair in found:
            recipe = StructuredPruning(keep={"layers": 2, "ffn": 0.5}, repair=repair)
            found[repair] += error(recipe.apply(model, recipe.plan(model, data), data), model, data)
    assert found["in_order"] < 0.9 * found["least_squares"]


def test_the_original_itself_is_left_as_it_is(bert_folder, tokenizer):
    model = BertModel.from_pretrained(bert_folder).eval()
    data = ready(Embedding(), model, tokenizer)
    student = copy.deepcopy(model)
    axis = discover(model.config, BertModel).named("ffn")[0]
    repair_in_order_(student, model, axis, {}, data)
    before = model.state_dict()
    assert all(torch.allclose(before[k], v, atol=1e-4) for k, v in student.state_dict().items())


def test_a_block_that_norms_the_output_first_is_refused(tokenizer):
    config = tiny(AutoConfig.for_model("gemma3_text"), depth=True)
    config.vocab_size = 200
    model = lively(AutoModelForCausalLM.from_config(config)).eval()
    data = ready(CausalLM(), model, tokenizer, length=16)
    recipe = StructuredPruning(keep={"ffn": 0.5}, repair="in_order")
    with pytest.raises(UsageError, match=r"adds? what .* least_squares"):
        recipe.apply(model, recipe.plan(model, data), data)
