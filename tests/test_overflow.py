import torch
from transformers import BertModel

from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.overflow import overflow_of
from tests.helpers import bert_config


def overflowing(dtype):
    model = randomize_weights_(BertModel(bert_config()))
    with torch.no_grad():
        model.encoder.layer[1].intermediate.dense.weight.mul_(1e5 / 2)
        model.encoder.layer[1].output.dense.weight.mul_(100)
    return model.to(dtype).eval()


def test_the_module_in_which_float16_overflows_is_named():
    model = overflowing(torch.float16)
    said = overflow_of(model, lambda: model(**example_inputs(model)))
    assert said is not None and "float16, which overflows in encoder.layer.1." in said and "bfloat16" in said
    assert not any(module._forward_hooks for module in model.modules())


def test_other_dtypes_and_finite_models_are_not_accused():
    wide = overflowing(torch.bfloat16)
    assert overflow_of(wide, lambda: wide(**example_inputs(wide))) is None
    fine = randomize_weights_(BertModel(bert_config())).to(torch.float16)
    assert overflow_of(fine, lambda: fine(**example_inputs(fine))) is None
