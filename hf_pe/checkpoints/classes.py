"""Which class a checkpoint's model has, and which auto class loads it."""

from typing import Any

import transformers
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto import modeling_auto
from transformers.utils.hub import TRANSFORMERS_DYNAMIC_MODULE_NAME

from hf_pe.checkpoints.config_checks import require_buildable
from hf_pe.errors import UsageError


def class_for(config: PretrainedConfig, auto_class: str | None = None) -> type[PreTrainedModel]:
    """The concrete class: of `auto_class` if given, else the one the checkpoint names, else AutoModel's.

    A config that came with code of its own, which was allowed when it was loaded, has its class there.

    Raises:
        UsageError: transformers has no such model, or the values of the config do not fit together.
    """
    found = _class_named(config, auto_class)
    if not brings_code(found):
        require_buildable(config, found)
    return found


def _class_named(config: PretrainedConfig, auto_class: str | None) -> type[PreTrainedModel]:
    own: dict[str, str] = config.auto_map if brings_code(type(config)) else {}
    named = (config.architectures or [""])[0]
    if auto_class is None:
        auto_class = next((auto for auto, place in own.items() if place.rpartition(".")[2] == named), None)
        stock = getattr(transformers, named, None)
        if auto_class is None and isinstance(stock, type) and issubclass(stock, PreTrainedModel):
            return stock
        auto_class = auto_class or "AutoModel"
    if auto_class in own:
        found: Any = get_class_from_dynamic_module(
            own[auto_class], config._name_or_path, revision=getattr(config, "_commit_hash", None)
        )
        found.register_for_auto_class(auto_class)  # so that its code is saved beside its weights
        config.register_for_auto_class()
        return found  # type: ignore[no-any-return]
    mapping = getattr(transformers, auto_class)._model_mapping
    if type(config) not in mapping:
        raise UsageError(
            f"A '{config.model_type}' model has no {auto_class}: choose another task. Without data, hf-pe cut, hf-pe "
            "quantize and hf-pe export keep its own class."
        )
    known = mapping[type(config)]
    return known[0] if isinstance(known, tuple) else known  # type: ignore[no-any-return]


def brings_code(kind: type) -> bool:
    """Whether a class of a model or a config is code that a checkpoint brought along."""
    return kind.__module__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}.")


def auto_class_of(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> str:
    """The auto class that makes `model_class` of `config`, such as AutoModelForImageClassification.

    Raises:
        UsageError: none does.
    """
    if brings_code(model_class):
        return str(model_class._auto_class)
    named = [name for name in modeling_auto.__all__ if name.startswith("AutoModelFor")] + ["AutoModel"]
    for name in named:
        found = getattr(getattr(transformers, name), "_model_mapping", {}).get(type(config), ())
        if model_class in (found if isinstance(found, tuple) else (found,)):
            return name
    raise UsageError(f"{model_class.__name__} is no class that an auto class of transformers loads.")
