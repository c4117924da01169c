"""Training through low-rank adapters that are merged at the end: less memory, the same stock model."""

import warnings
from typing import Any

from peft import LoraConfig, get_peft_model
from pydantic import Field
from transformers import PreTrainedModel

from hf_pe.errors import UsageError
from hf_pe.plans import Frozen

PAPER = "https://arxiv.org/abs/2106.09685"


class Lora(Frozen):
    """Train W + (alpha / rank) B A in place of W (Hu et al. 2022, arXiv:2106.09685, eq. 3)."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str | tuple[str, ...] = Field(
        "all-linear", description="which maps get adapters: all-linear (not the output head), or names such as q_proj"
    )

    def wrapped(self, model: PreTrainedModel) -> Any:
        """`model` with adapters in place, changed in place; only they want gradients.

        Raises:
            UsageError: no map has such a name.
        """
        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        settings = LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=targets)  # type: ignore[arg-type]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # peft says that it transposes Conv1D
                return get_peft_model(model, settings)
        except ValueError as error:
            raise UsageError(f"distil.lora.targets: {error}") from error


def merged(model: Any) -> PreTrainedModel:
    """The model under the adapters, with what they learned added to its weights."""
    found: PreTrainedModel = model.merge_and_unload()
    return found
