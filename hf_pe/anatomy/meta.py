"""Builds models on the meta device, where they have shapes and attributes but take no memory."""

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.anatomy.custom_modules import built


@dataclass(frozen=True)
class Architecture:
    """Pair a config with a class so that pairs of equal content are equal: a key for caches."""

    model_class: type[PreTrainedModel]
    text: str
    config: PretrainedConfig = dataclasses.field(compare=False, repr=False)

    @classmethod
    def of(cls, config: PretrainedConfig, model_class: type[PreTrainedModel]) -> "Architecture":
        """Return the pair, with a copy of `config`, which may change later."""
        return cls(model_class, config.to_json_string(use_diff=False), copy.deepcopy(config))


def meta_model(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """Build `model_class` on the meta device: shapes and attributes, no memory. `config` is not changed."""
    with torch.device("meta"), _Unfilled():
        model = built(config, model_class)
    model.eval()
    return model


class _Unfilled(TorchFunctionMode):
    """Skip calls of `torch.nn.init`, which take a third of the time and fill tensors that hold no values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
