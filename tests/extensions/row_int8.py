"""Weights in 8 bits with a scale for each row, as a library that transformers knows would load them. Needs no hf_pe."""

import torch
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin


class RowInt8Linear(nn.Module):
    """A linear layer whose weight is codes times the scale of their row."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, device: str | None = None) -> None:
        super().__init__()
        codes = torch.zeros(outputs, inputs, dtype=torch.int8, device=device)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(torch.zeros(outputs, 1, device=device), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(outputs, device=device)) if bias else None

    @classmethod
    def of(cls, linear: nn.Linear) -> "RowInt8Linear":
        made = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        weight = linear.weight.detach().float()
        made.scale.data = (weight.abs().amax(1, keepdim=True) / 127).clamp_min(1e-12)
        made.weight.data = (weight / made.scale).round().to(torch.int8)
        if linear.bias is not None:
            made.bias.data = linear.bias.detach().clone()
        return made

    def dequantized(self) -> torch.Tensor:
        return self.weight.float() * self.scale.float()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(inputs, self.dequantized().to(inputs.dtype), self.bias)


@register_quantization_config("row_int8")
class RowInt8Config(QuantizationConfigMixin):
    """Which layers keep their weights."""

    def __init__(self, modules_to_not_convert: list[str] | None = None, **_: object) -> None:
        self.quant_method = "row_int8"
        self.modules_to_not_convert = list(modules_to_not_convert or [])


@register_quantizer("row_int8")
class RowInt8Quantizer(HfQuantizer):
    """Exchanges linear layers: before weights are read where they are codes, afterwards where they are plain."""

    requires_calibration = False

    def _linear(self, model: nn.Module) -> dict[str, nn.Linear]:
        kept = self.quantization_config.modules_to_not_convert
        return {name: m for name, m in model.named_modules() if type(m) is nn.Linear and name not in kept}

    def _process_model_before_weight_loading(self, model: nn.Module, **_: object) -> nn.Module:
        for name, linear in self._linear(model).items() if self.pre_quantized else ():
            sizes = linear.in_features, linear.out_features
            model.set_submodule(name, RowInt8Linear(*sizes, bias=linear.bias is not None, device="meta"))
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **_: object) -> nn.Module:
        for name, linear in self._linear(model).items() if not self.pre_quantized else ():
            model.set_submodule(name, RowInt8Linear.of(linear))
        return model

    def is_serializable(self, **_: object) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False
