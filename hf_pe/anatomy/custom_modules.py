"""Describes and builds custom modules, which a stock config cannot express.

Their description lives in the config under a key of its own, so that `quantization_config` stays free for a quantizer;
`hf_pe.plugin` makes transformers read it. Before version 0.1 it was part of `quantization_config`, which is still read.
"""

import copy
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

KEY = "hf_pe_modules"
"""The key of config.json that holds the description."""
METHOD = "hf_pe"
"""The method in `quantization_config` that marks the description there, in configs of older versions."""


class CustomModules(BaseModel):
    """Describe the custom modules of a model.

    Attributes:
        separable: names of the convolutions that are replaced by a depthwise and a pointwise one, with the number of
            outputs that the depthwise one computes for each input channel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    separable: dict[str, int] = {}


class Separable(nn.Module):
    """Compute a depthwise convolution and then a pointwise one (Howard et al. 2017, arXiv:1704.04861)."""

    def __init__(self, plain: Any, rank: int) -> None:
        """Build the two convolutions, with random weights, that replace a plain one.

        Args:
            plain: an `nn.Conv1d` or `nn.Conv2d` without groups.
            rank: outputs of the depthwise convolution for each input channel.
        """
        super().__init__()
        options = {"device": plain.weight.device, "dtype": plain.weight.dtype}
        convolution: Any = type(plain)
        channels = plain.in_channels * rank
        self.depthwise = convolution(
            plain.in_channels, channels, plain.kernel_size, plain.stride, plain.padding, plain.dilation,
            groups=plain.in_channels, bias=False, padding_mode=plain.padding_mode, **options,
        )  # fmt: skip
        self.pointwise = convolution(channels, plain.out_channels, 1, bias=plain.bias is not None, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [batch, channels, ...] to [batch, channels, ...], with the shapes of the plain convolution."""
        outputs: torch.Tensor = self.pointwise(self.depthwise(x))
        return outputs


def custom_modules_of(config: PretrainedConfig) -> CustomModules | None:
    """Return the description of a model's custom modules; None where the model is a stock one.

    Raises:
        ValueError: the config holds something else under the key.
    """
    described = getattr(config, KEY, None)
    if described is not None:
        return CustomModules.model_validate(described)
    quantization = getattr(config, "quantization_config", None)
    values = quantization if isinstance(quantization, dict) else quantization.to_dict() if quantization else {}
    if values.get("quant_method") != METHOD:
        return None
    return CustomModules(**{name: value for name, value in values.items() if name in CustomModules.model_fields})


def with_custom_modules(config: PretrainedConfig, custom: CustomModules) -> PretrainedConfig:
    """Return a copy of `config` that describes custom modules, under their own key alone.

    Example:
        >>> config = with_custom_modules(PretrainedConfig(), CustomModules(separable={"stem": 1}))
        >>> config.hf_pe_modules
        {'separable': {'stem': 1}}
        >>> custom_modules_of(config)
        CustomModules(separable={'stem': 1})
    """
    new = copy.deepcopy(config)
    if getattr(new, KEY, None) is None and custom_modules_of(new) is not None:
        del new.quantization_config
    setattr(new, KEY, custom.model_dump())
    return new


def reshape_(model: PreTrainedModel, custom: CustomModules) -> None:
    """Give a stock model its custom modules, with random weights (none on the meta device).

    The config names modules as the saved model does. Its base model alone has them without the prefix, and lacks those
    of the head.

    Raises:
        ValueError: the model lacks a module of that name.
    """
    modules = dict(model.named_modules())
    for name, rank in custom.separable.items():
        own_name = name if name in modules else name.removeprefix(f"{model.base_model_prefix}.")
        if own_name in modules and not isinstance(modules[own_name], Separable):  # else its base has it already
            model.set_submodule(own_name, Separable(modules[own_name], rank))
        elif own_name not in modules and model.base_model is not model:
            raise ValueError(f"the config names a custom module '{name}', which {type(model).__name__} does not have")


def built(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """Build a model with random weights and the custom modules that its config describes; `config` is not changed."""
    model: PreTrainedModel = model_class(copy.deepcopy(config))
    custom = custom_modules_of(config)
    if custom is not None:
        reshape_(model, custom)
    return model
