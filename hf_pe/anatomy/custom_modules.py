"""The plug-in form: what a stock config cannot say about a model's modules.

It stands in `quantization_config`, where transformers looks for who changes a model before its weights are loaded (see
`hf_pe.plugin`).
"""

import copy
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

METHOD = "hf_pe"
"""The name of the form among the methods of `quantization_config`."""


class Form(BaseModel):
    """What differs from the stock model.

    Attributes:
        separable: convolutions by name that are a depthwise and a pointwise one; how many maps the first makes of each
            channel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    separable: dict[str, int] = {}


class Separable(nn.Module):
    """A convolution over each channel alone, then one of size 1 across them (Howard et al. 2017, arXiv:1704.04861)."""

    def __init__(self, plain: Any, rank: int) -> None:
        """In the place of `plain`, a convolution without groups; `rank` maps of each channel. Weights are random."""
        super().__init__()
        where = {"device": plain.weight.device, "dtype": plain.weight.dtype}
        kind: Any = type(plain)
        between = plain.in_channels * rank
        self.depthwise = kind(
            plain.in_channels, between, plain.kernel_size, plain.stride, plain.padding, plain.dilation,
            groups=plain.in_channels, bias=False, padding_mode=plain.padding_mode, **where,
        )  # fmt: skip
        self.pointwise = kind(between, plain.out_channels, 1, bias=plain.bias is not None, **where)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the plain convolution's: [batch, channels, ...] to [batch, channels, ...]."""
        found: torch.Tensor = self.pointwise(self.depthwise(x))
        return found


def form_of(config: PretrainedConfig) -> Form | None:
    """The form that a config names; None where the model is a stock one."""
    told = getattr(config, "quantization_config", None)
    values = told if isinstance(told, dict) else told.to_dict() if told is not None else {}
    if values.get("quant_method") != METHOD:
        return None
    return Form(**{name: value for name, value in values.items() if name in Form.model_fields})


def with_form(config: PretrainedConfig, form: Form) -> PretrainedConfig:
    """A copy of `config` that names `form`."""
    new = copy.deepcopy(config)
    new.quantization_config = {"quant_method": METHOD, **form.model_dump()}
    return new


def reshape_(model: PreTrainedModel, form: Form) -> None:
    """Give a stock model the modules of `form`, with random weights (none on the meta device)."""
    for name, rank in form.separable.items():
        model.set_submodule(name, Separable(model.get_submodule(name), rank))


def built(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """A model with random weights, in the form that its config names; `config` is not changed."""
    model: PreTrainedModel = model_class(copy.deepcopy(config))
    form = form_of(config)
    if form is not None:
        reshape_(model, form)
    return model
