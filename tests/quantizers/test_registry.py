"""What holds for a model whichever quantizer has quantized it."""

import bitsandbytes as bnb
from torch import nn

from hf_pe.quantizers.registry import is_quantized


def test_quantized_weights_are_noticed_whoever_put_them_into_a_model():
    """transformers marks the layers that it exchanges; a user's own layers have no such mark."""
    model = nn.Sequential(nn.Linear(64, 32))
    assert not is_quantized(model)
    model.append(bnb.nn.Linear4bit(32, 32, quant_type="nf4").to("cpu"))
    assert is_quantized(model)
