"""Training through low-rank adapters: merged at the end, so that the same stock model comes of it, or kept beside
packed weights."""

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
from hf_pe.plans import Frozen
from hf_pe.quantizers.base import QuantizationSettings
from hf_pe.quantizers.layers import is_linear, plain_weight
from hf_pe.quantizers.registry import METHODS, MethodName, dequantized_weight

PAPER = "https://arxiv.org/abs/2106.09685"
PACKED_PAPER = "https://arxiv.org/abs/2305.14314"
RESIDUAL_PAPER = "https://arxiv.org/abs/2310.08659"


class Lora(Frozen):
    """Train W + (alpha / rank) B A in place of W (Hu et al. 2022, arXiv:2106.09685, eq. 3)."""

    rank: int = Field(16, ge=1, description="of the two factors of each adapter")
    alpha: float = Field(32.0, gt=0, description="adapters are scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the inputs of the adapters")
    targets: str | tuple[str, ...] = Field(
        "all-linear", description="which maps get adapters: all-linear (not the output head), or names such as q_proj"
    )
    base: MethodName | None = Field(
        None,
        description="pack the weights under the adapters while they learn (QLoRA): less memory; unpacked again at the "
        "end, with what was learned on top",
    )
    merge: bool = Field(
        True,
        description="with base: False keeps the adapters beside the packed weights, in one folder that from_pretrained "
        "loads where peft is installed; the step is the last one then",
    )
    start: Literal["zero", "residual"] = Field(
        "zero",
        description="with base: residual starts the adapters with what packing took from the weights, as far as their "
        "rank goes",
    )

    @model_validator(mode="after")
    def _has_residual(self) -> "Lora":
        if self.start == "residual" and self.base is None:
            raise ValueError("start: residual is what packing takes away; expected base with it. Leave out start")
        if not self.merge and self.base is None:
            raise ValueError(
                "merge: false keeps adapters beside packed weights; expected base with it. Leave out merge"
            )
        return self

    @property
    def references(self) -> tuple[str, ...]:
        """For the card."""
        found = (PAPER, PACKED_PAPER) if self.base else (PAPER,)
        return (*found, RESIDUAL_PAPER) if self.start == "residual" else found

    @property
    def end(self) -> str:
        """What becomes of the adapters, for the card."""
        return "merged" if self.merge else f"beside weights packed in {self.base}"

    def base_of(self, model: PreTrainedModel) -> PreTrainedModel:
        """A copy of `model` to put adapters on, packed where that is asked for (Dettmers et al. 2023, section 3)."""
        if not self.base:
            return copy.deepcopy(model)
        quantizer = METHODS[self.base]
        kept = quantizer.kept_layers(model, self.base)
        return quantizer.quantized(model, QuantizationSettings(self.base, kept, compute_dtype=model.dtype))

    def base_bits(self, model: PreTrainedModel) -> dict[str, float]:
        """Return the bits that a weight takes under the adapters, by the names of parameters that are packed."""
        if self.base is None:
            return {}
        quantizer = METHODS[self.base]
        names = quantizer.quantizable_layers(model, quantizer.kept_layers(model, self.base))
        return {f"{name}.weight": quantizer.bits(QuantizationSettings(self.base)) for name in names}

    def wrapped(self, model: PreTrainedModel, plain: PreTrainedModel) -> Any:
        """`model` with adapters in place, changed in place; only they want gradients.

        Args:
            model: what `base_of` gave.
            plain: of what.

        Raises:
            UsageError: no map has such a name.
        """
        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        told = LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=targets)  # type: ignore[arg-type]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # peft says that it transposes Conv1D
                learner = get_peft_model(model, told)
        except ValueError as error:
            raise UsageError(f"distil.lora.targets: {error}") from error
        if self.start == "residual":
            _start_with_residual_(learner, plain)
        return learner

    def ended(self, learner: Any, model: PreTrainedModel) -> PreTrainedModel:
        """What comes of it: the stock model, or the packed one with the adapters in it, as transformers knows such.

        Args:
            learner: what `wrapped` gave, trained; used up.
            model: the student before; stays as it is.
        """
        if self.merge:
            return self.merged(learner, model)
        found: Any = learner.get_base_model()
        found.peft_config = learner.peft_config
        for told in found.peft_config.values():
            told.base_model_name_or_path = None  # it lies in the same folder
            told.inference_mode = True
        found._hf_peft_config_loaded = True
        return found  # type: ignore[no-any-return]

    @torch.no_grad()
    def merged(self, learner: Any, model: PreTrainedModel) -> PreTrainedModel:
        """The stock model: what the adapters learned added to the weights they learned on, unpacked.

        Args:
            learner: what `wrapped` gave, trained.
            model: the student before; stays as it is.
        """
        if not self.base:
            found: PreTrainedModel = learner.merge_and_unload()
            return found
        made = copy.deepcopy(model)
        for name, module in learner.get_base_model().named_modules():
            adapted = isinstance(module, LoraLayer)
            linear: Any = module.get_base_layer() if adapted else module
            target = _linear_at(made, name) if is_linear(linear) else None
            if target is not None:
                delta: Any = module.get_delta_weight("default") if adapted else 0
                delta = delta.T if adapted and isinstance(linear, Conv1D) else delta
                plain_weight(target).copy_(dequantized_weight(linear).float() + delta)  # rounded once
        return made


@torch.no_grad()
def _start_with_residual_(learner: Any, plain: PreTrainedModel) -> None:
    """Adapters B A that come nearest to W - Q, by its singular values.

    Li et al. 2023, LoftQ, arXiv:2310.08659, eq. 8, after one packing.
    """
    for name, module in learner.get_base_model().named_modules():
        if not isinstance(module, LoraLayer):
            continue
        down, up = (getattr(module, part)["default"].weight for part in ("lora_A", "lora_B"))
        lost = plain_weight(plain.get_submodule(name)).float() - dequantized_weight(module.get_base_layer()).float()
        rank = min(len(down), *lost.shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, values, right = torch.svd_lowrank(lost, q=min(2 * rank, *lost.shape), niter=4)
        roots = values[:rank].sqrt()
        down[:rank] = roots[:, None] * right.T[:rank]
        up[:, :rank] = left[:, :rank] * roots / module.scaling["default"]


def _linear_at(model: PreTrainedModel, name: str) -> Any:
    """The linear layer called `name`; None where adapters brought that name."""
    try:
        found = model.get_submodule(name)
    except AttributeError:
        return None
    return found if is_linear(found) else None
