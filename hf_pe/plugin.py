"""Imported, it teaches transformers to load models in the plug-in form; plain `from_pretrained` does the rest."""

from typing import Any

import torch
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_pe.anatomy import METHOD, Form, reshape_


@register_quantization_config(METHOD)
class FormConfig(QuantizationConfigMixin):
    """What `config.json` says of the form; see `hf_pe.anatomy.Form`."""

    def __init__(self, **values: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self.form = Form(**{name: value for name, value in values.items() if name in Form.model_fields})

    def to_dict(self) -> dict[str, Any]:
        """As it is written."""
        return {"quant_method": METHOD, **self.form.model_dump()}


@register_quantizer(METHOD)
class FormQuantizer(HfQuantizer):
    """Changes the modules of an empty model before its weights are loaded. Weights stay what they are: nothing is
    packed, so the model trains, compiles and saves as any other."""

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        with torch.device("meta"):
            told: Any = self.quantization_config
            reshape_(model, told.form)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        model.is_quantized = False  # its weights are plain ones: they may be moved, cast and trained
        return model

    def is_serializable(self, **kwargs: Any) -> bool:
        """It can be saved again."""
        return True

    @property
    def is_trainable(self) -> bool:
        """All its weights can be trained."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """What the Trainer asks before it trains without adapters."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Its modules are plain ones."""
        return True
