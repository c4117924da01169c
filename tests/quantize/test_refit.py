import pytest
import torch
from transformers import AlbertConfig, AlbertModel, BertModel, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from hf_pe.calibration import distance, task_outputs
from hf_pe.data import load_examples
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.quantize import BitsAndBytesQuantization
from hf_pe.quantize.refit import refit_
from hf_pe.quantizers.layers import plain_linear_layers
from hf_pe.quantizers.registry import dequantized_weight
from hf_pe.recipe import StageState
from hf_pe.tasks import CausalLM, Embedding
from tests.helpers import TEXTS, bert_config

SMALL = {"vocab_size": 200, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}


@pytest.fixture(params=["bert", "llama", "gpt2", "albert"])
def case(request, bert_folder, llama_folder, tokenizer):
    """A model and its data: layers in a stack, transposed ones (Conv1D), one block that runs many times."""
    if request.param == "bert":
        model = BertModel.from_pretrained(bert_folder)
    elif request.param == "llama":
        model = LlamaForCausalLM.from_pretrained(llama_folder)
    elif request.param == "gpt2":
        model = randomize_weights_(
            GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=128, **SMALL))
        )
    else:
        sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
        model = randomize_weights_(AlbertModel(AlbertConfig(embedding_size=64, **sizes, **SMALL)))
    task = CausalLM() if model.can_generate() else Embedding()
    return model.eval(), task.prepare(load_examples(TEXTS), tokenizer, model.config)


@pytest.mark.parametrize(
    "settings",
    [{}, {"double_quantization": False}, {"method": "fp4"}, {"storage_dtype": "bfloat16"}],
    ids=["nf4", "single", "fp4", "stored as bfloat16"],
)
def test_refitted_weights_have_nearer_outputs_and_load_anywhere(case, settings, tmp_path):
    model, data = case
    expected = task_outputs(model, data, by_token=True)
    lost = {}
    for refit in ("none", "gptq"):
        recipe = BitsAndBytesQuantization(refit=refit, **settings)
        small = recipe.carry_out(StageState(model, data)).model
        lost[refit] = distance(task_outputs(small, data, by_token=True), expected)
    assert 0 < lost["gptq"] < 0.7 * lost["none"]
    small.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    inputs = example_inputs(model)
    assert difference(outputs_of(small, inputs), outputs_of(again, inputs)) == 0


def test_the_given_model_stays_as_it_is(case):
    model, data = case
    before = {name: p.clone() for name, p in model.named_parameters()}
    recipe = BitsAndBytesQuantization(refit="gptq")
    recipe.carry_out(StageState(model, data))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_layers_that_no_row_reaches_stay_rounded_and_are_listed(tokenizer):
    """A decoder that is given no encoder's states never runs its attention to them."""
    model = randomize_weights_(BertModel(bert_config(is_decoder=True, add_cross_attention=True))).eval()
    data = Embedding().prepare(load_examples(TEXTS), tokenizer, model.config)
    recipe = BitsAndBytesQuantization(refit="none")
    small = recipe.carry_out(StageState(model, data)).model
    names = plain_linear_layers(model, recipe.modules_to_not_convert(model))
    before = {name: dequantized_weight(small.get_submodule(name)).clone() for name in names}
    left = refit_(small, model, names, data, recipe.quantizer)
    assert left == [name for name in names if "crossattention" in name] and left
    for name in names:
        assert torch.equal(dequantized_weight(small.get_submodule(name)), before[name]) == (name in left)
