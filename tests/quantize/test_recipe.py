import pytest
import torch
from transformers import AutoModelForCausalLM, BertForSequenceClassification, BertModel, LlamaForCausalLM

from hf_pe.data import load_examples
from hf_pe.errors import UsageError
from hf_pe.instance import difference, example_inputs, lively, outputs_of
from hf_pe.measure import parameters, weight_bytes
from hf_pe.plans import Sketch
from hf_pe.quantize import BitsAndBytesQuantization
from hf_pe.tasks import Embedding
from tests.helpers import TEXTS, bert_config


def packed(model, **settings):
    recipe = BitsAndBytesQuantization(**settings)
    return recipe.apply(model, recipe.plan(model, None), None)


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_reload_is_equal_to_the_bit_and_near_the_original(method, tmp_path):
    model = lively(BertForSequenceClassification(bert_config()))
    small = packed(model, method=method)
    inputs = example_inputs(model)
    gap = difference(outputs_of(model, inputs), outputs_of(small, inputs))
    assert 1e-6 < gap < 0.6
    small.save_pretrained(tmp_path)
    again = BertForSequenceClassification.from_pretrained(tmp_path)
    assert difference(outputs_of(small, inputs), outputs_of(again, inputs)) == 0
    assert parameters(small).total == parameters(model).total == parameters(again).total


def test_heads_are_kept_and_the_whole_list_is_stored():
    model = lively(BertForSequenceClassification(bert_config()))
    small = packed(model, skip=("pooler.dense",))
    assert type(small.classifier) is torch.nn.Linear
    assert type(small.bert.pooler.dense) is torch.nn.Linear
    assert type(small.bert.encoder.layer[0].output.dense) is not torch.nn.Linear
    stored = small.config.quantization_config
    assert {"classifier", "bert.pooler.dense"} <= set(stored.llm_int8_skip_modules)
    assert stored.bnb_4bit_compute_dtype == torch.float32
    assert stored.bnb_4bit_use_double_quant


def test_tied_embeddings_stay_tied(llama_folder, tmp_path):
    model = LlamaForCausalLM.from_pretrained(llama_folder)
    small = packed(model)
    assert small.lm_head.weight is small.model.embed_tokens.weight
    assert small.lm_head.weight.dtype == torch.float32
    small.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    inputs = example_inputs(model)
    assert difference(outputs_of(small, inputs), outputs_of(again, inputs)) == 0
    assert again.lm_head.weight is again.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("settings", "bits"), [({}, 4.127), ({"double_quantization": False}, 4.5), ({"method": "int8"}, 8)]
)
def test_the_outline_states_the_bytes_that_come(settings, bits):
    config = bert_config(hidden_size=256, intermediate_size=1024)
    recipe = BitsAndBytesQuantization(**settings)
    assert recipe.bits == pytest.approx(bits, abs=1e-3)
    plan, _ = recipe.outline(Sketch(config=config, model_class=BertModel))
    small = packed(lively(BertModel(config)), **settings)
    assert plan.weight_bytes == pytest.approx(weight_bytes(small), rel=0.02)
    assert "25 linear layers packed" in plan.notes


def test_the_given_model_is_left_alone():
    model = lively(BertModel(bert_config()))
    packed(model)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert not hasattr(model.config, "quantization_config")


def test_a_quantized_model_still_does_its_task(bert_folder, tokenizer):
    model = BertModel.from_pretrained(bert_folder).eval()
    data = Embedding().prepare(load_examples(TEXTS), tokenizer, model.config)
    from dataclasses import replace

    data = replace(data, teacher=model)
    assert Embedding().judge(packed(model, method="int8"), data).scores()["spearman"] > 0.9


def test_layers_bitsandbytes_cannot_pack_are_kept_and_said():
    """Its 4-bit CPU kernel needs input widths in whole blocks of 64."""
    config = bert_config(hidden_size=96, intermediate_size=128)
    plan, _ = BitsAndBytesQuantization().outline(Sketch(config=config, model_class=BertModel))
    assert "4 linear layers packed" in plan.notes
    small = packed(lively(BertModel(config)))
    assert type(small.encoder.layer[0].intermediate.dense) is torch.nn.Linear
    assert type(small.encoder.layer[0].output.dense) is not torch.nn.Linear
    assert all(torch.isfinite(o).all() for o in outputs_of(small, example_inputs(small)))


def test_nothing_to_pack_is_refused():
    with pytest.raises(UsageError, match="no linear layer"):
        BitsAndBytesQuantization().outline(
            Sketch(config=bert_config(hidden_size=32, intermediate_size=96), model_class=BertModel)
        )
