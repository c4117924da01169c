"""Trains low-rank adapters instead of all weights.

At the end they are merged, so that the result is the same stock model, or kept beside quantized weights.
"""

import copy
import warnings
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from pydantic import Field, model_validator
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_pe.errors import UsageError
from hf_pe.quantizers.base import QuantizationSettings
from hf_pe.quantizers.layers import is_linear, plain_weight
from hf_pe.quantizers.registry import METHODS, MethodName, dequantized_weight
from hf_pe.settings import Settings

PAPER = "https://arxiv.org/abs/2106.09685"
PACKED_PAPER = "https://arxiv.org/abs/2305.14314"
RESIDUAL_PAPER = "https://arxiv.org/abs/2310.08659"


class Lora(Settings):
    """Trains W + (alpha / rank) B A instead of W, for linear layers (Hu et al. 2022, arXiv:2106.09685, eq. 3)."""

    rank: int = Field(16, ge=1, description="of the two factors of each adapter")
    alpha: float = Field(32.0, gt=0, description="adapters are scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the inputs of the adapters")
    targets: str | tuple[str, ...] = Field(
        "all-linear", description="layers with adapters: all-linear (not the output head), or names such as q_proj"
    )
    base: MethodName | None = Field(
        None,
        description="quantize the weights under the adapters during training (QLoRA), which saves memory; at the end "
        "they are dequantized and the adapters added",
    )
    merge: bool = Field(
        True,
        description="with base: False keeps the adapters beside the quantized weights, in one folder that "
        "from_pretrained loads if peft is installed; no stage can follow",
    )
    start: Literal["zero", "residual"] = Field(
        "zero",
        description="with base: residual initializes the adapters with the quantization error of the weights, as far "
        "as their rank allows",
    )

    @model_validator(mode="after")
    def _has_residual(self) -> "Lora":
        if self.start == "residual" and self.base is None:
            raise ValueError("start: residual is the quantization error; expected base with it. Leave out start")
        if not self.merge and self.base is None:
            raise ValueError(
                "merge: false keeps adapters beside quantized weights; expected base with it. Leave out merge"
            )
        return self

    @property
    def references(self) -> tuple[str, ...]:
        """The links to the papers of these settings."""
        papers = (PAPER, PACKED_PAPER) if self.base else (PAPER,)
        return (*papers, RESIDUAL_PAPER) if self.start == "residual" else papers

    @property
    def end(self) -> str:
        """A phrase for plans that says what happens to the adapters at the end."""
        return "merged" if self.merge else f"beside weights quantized to {self.base}"

    def base_of(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return a copy of `model` for adapters, quantized if `base` is set (Dettmers et al. 2023, section 3)."""
        if not self.base:
            return copy.deepcopy(model)
        quantizer = METHODS[self.base]
        kept = quantizer.kept_layers(model, self.base)
        return quantizer.quantized(model, QuantizationSettings(self.base, kept, compute_dtype=model.dtype))

    def base_bits(self, model: PreTrainedModel) -> dict[str, float]:
        """Return the bits per weight of the quantized parameters under the adapters, by their names."""
        if self.base is None:
            return {}
        quantizer = METHODS[self.base]
        names = quantizer.quantizable_layers(model, quantizer.kept_layers(model, self.base))
        return {f"{name}.weight": quantizer.bits(QuantizationSettings(self.base)) for name in names}

    def wrapped(self, model: PreTrainedModel, plain: PreTrainedModel) -> Any:
        """Return `model` with adapters, which alone have gradients; `model` is changed in place.

        Args:
            model: result of `base_of`.
            plain: the model that `base_of` copied.

        Raises:
            UsageError: no layer has a name in `targets`.
        """
        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=targets)  # type: ignore[arg-type]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # peft warns that it transposes Conv1D
                learner = get_peft_model(model, config)
        except ValueError as error:
            raise UsageError(f"distil.lora.targets: {error}") from error
        if self.start == "residual":
            _start_with_residual_(learner, plain)
        return learner

    def ended(self, learner: Any, model: PreTrainedModel) -> PreTrainedModel:
        """Return the stock model with the adapters merged, or the quantized model with adapters as transformers has it.

        Args:
            learner: the trained result of `wrapped`; cannot be used afterwards.
            model: the student before training; is not changed.
        """
        if self.merge:
            return self.merged(learner, model)
        with_adapters: Any = learner.get_base_model()
        with_adapters.peft_config = learner.peft_config
        for config in with_adapters.peft_config.values():
            config.base_model_name_or_path = None  # it is in the same folder
            config.inference_mode = True
        with_adapters._hf_peft_config_loaded = True
        return with_adapters  # type: ignore[no-any-return]

    @torch.no_grad()
    def merged(self, learner: Any, model: PreTrainedModel) -> PreTrainedModel:
        """Return the stock model with the adapters added to the dequantized weights that they were trained on.

        Args:
            learner: the trained result of `wrapped`.
            model: the student before training; is not changed.
        """
        if not self.base:
            stock: PreTrainedModel = learner.merge_and_unload()
            return stock
        merged = copy.deepcopy(model)
        for name, module in learner.get_base_model().named_modules():
            adapted = isinstance(module, LoraLayer)
            linear: Any = module.get_base_layer() if adapted else module
            target = _linear_at(merged, name) if is_linear(linear) else None
            if target is not None:
                delta: Any = module.get_delta_weight("default") if adapted else 0
                delta = delta.T if adapted and isinstance(linear, Conv1D) else delta
                plain_weight(target).copy_(dequantized_weight(linear).float() + delta)  # rounded once
        return merged


@torch.no_grad()
def _start_with_residual_(learner: Any, plain: PreTrainedModel) -> None:
    """Initialize the adapters B A with the best approximation of the quantization error W - Q, by its singular values.

    Li et al. 2023, LoftQ, arXiv:2310.08659, eq. 8, after one quantization.
    """
    for name, module in learner.get_base_model().named_modules():
        if not isinstance(module, LoraLayer):
            continue
        down, up = (getattr(module, part)["default"].weight for part in ("lora_A", "lora_B"))
        error = plain_weight(plain.get_submodule(name)).float() - dequantized_weight(module.get_base_layer()).float()
        rank = min(len(down), *error.shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, values, right = torch.svd_lowrank(error, q=min(2 * rank, *error.shape), niter=4)
        roots = values[:rank].sqrt()
        down[:rank] = roots[:, None] * right.T[:rank]
        up[:, :rank] = left[:, :rank] * roots / module.scaling["default"]


def _linear_at(model: PreTrainedModel, name: str) -> Any:
    """Return the linear layer called `name`; None if only the adapters have a layer of that name."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        return None
    return module if is_linear(module) else None
