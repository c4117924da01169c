"""Choose the model class of a checkpoint, and the auto class that loads it."""

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
    """Return the concrete class of the model that a config describes.

    A config that was loaded with custom code (the user allowed it then) has its class in that code.

    Args:
        config: Config of the model.
        auto_class: Auto class whose model is asked for. By default the class that `architectures` of the config
            names, else that of AutoModel.

    Raises:
        UsageError: transformers has no such model, or the values of the config do not fit together.
    """
    model_class = _class_named(config, auto_class)
    if not brings_code(model_class):
        require_buildable(config, model_class)
    return model_class


def _class_named(config: PretrainedConfig, auto_class: str | None) -> type[PreTrainedModel]:
    own: dict[str, str] = config.auto_map if brings_code(type(config)) else {}
    named = (config.architectures or [""])[0]
    if auto_class is None:
        auto_class = next((auto for auto, reference in own.items() if reference.rpartition(".")[2] == named), None)
        stock = getattr(transformers, named, None)
        if auto_class is None and isinstance(stock, type) and issubclass(stock, PreTrainedModel):
            return stock
        auto_class = auto_class or "AutoModel"
    if auto_class in own:
        custom_class: Any = get_class_from_dynamic_module(
            own[auto_class], config._name_or_path, revision=getattr(config, "_commit_hash", None)
        )
        custom_class.register_for_auto_class(auto_class)  # so that its code is saved beside its weights
        config.register_for_auto_class()
        return custom_class  # type: ignore[no-any-return]
    mapping = getattr(transformers, auto_class)._model_mapping
    if type(config) not in mapping:
        raise UsageError(
            f"A '{config.model_type}' model has no {auto_class}: choose another task. Without data, hf-pe cut, hf-pe "
            "quantize and hf-pe export keep its own class."
        )
    mapped = mapping[type(config)]
    return mapped[0] if isinstance(mapped, tuple) else mapped  # type: ignore[no-any-return]


def brings_code(kind: type) -> bool:
    """Return whether a model or config class comes from the custom code of a checkpoint."""
    return kind.__module__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}.")


def auto_class_of(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> str:
    """Return the auto class that loads `model_class` for `config`, such as AutoModelForImageClassification.

    Raises:
        UsageError: No auto class of transformers does.
    """
    if brings_code(model_class):
        return str(model_class._auto_class)
    auto_classes = [name for name in modeling_auto.__all__ if name.startswith("AutoModelFor")] + ["AutoModel"]
    for name in auto_classes:
        mapped = getattr(getattr(transformers, name), "_model_mapping", {}).get(type(config), ())
        if model_class in (mapped if isinstance(mapped, tuple) else (mapped,)):
            return name
    raise UsageError(
        f"No auto class of transformers loads {model_class.__name__}; expected a class that one of them loads, such as "
        "AutoModelForCausalLM."
    )
