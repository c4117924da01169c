"""Makes `from_pretrained` load models with custom modules; importing this module is enough."""

from typing import Any

from transformers import PreTrainedModel, modeling_utils
from transformers.monkey_patching import patch_output_recorders
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_pe.anatomy import METHOD, CustomModules, custom_modules_of, reshape_, with_custom_modules


def _finish_model(model: PreTrainedModel) -> None:
    """Give a model that transformers has just built the custom modules that its config describes.

    `from_pretrained` and `from_config` call it on the whole model, before they load weights or a quantizer replaces
    modules.
    """
    patch_output_recorders(model)
    custom = custom_modules_of(model.config)
    if custom is not None:
        reshape_(model, custom)


_building: Any = modeling_utils
_building.patch_output_recorders = _finish_model


@register_quantization_config(METHOD)
class OlderDescription(QuantizationConfigMixin):
    """Read the description of custom modules from `quantization_config`, where older versions wrote it."""

    def __init__(self, **values: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self.custom = CustomModules(
            **{name: value for name, value in values.items() if name in CustomModules.model_fields}
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the description as it was written."""
        return {"quant_method": METHOD, **self.custom.model_dump()}


@register_quantizer(METHOD)
class OlderDescriptionReader(HfQuantizer):
    """Moves the description of custom modules from `quantization_config` to its own key; quantizes nothing."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        quantization: Any = self.quantization_config
        model.config = with_custom_modules(model.config, quantization.custom)
        self.remove_quantization_config(model)  # type: ignore[no-untyped-call]
        return model

    def is_serializable(self, **kwargs: Any) -> bool:
        """Return True, since the model can be saved again."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True, since all weights are plain ones."""
        return True
