"""Loads teachers: the original or other models, quantized or with an adapter."""

from pathlib import Path
from typing import Any

from peft import PeftModel
from pydantic import Field, field_serializer
from transformers import PreTrainedModel

from hf_pe.adapters import merged, read_adapter
from hf_pe.anatomy import meta_model
from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.processor import load_processor
from hf_pe.checkpoints.source import resolve
from hf_pe.distill.teachers.compatible import require_same_tokens
from hf_pe.errors import UsageError, pass_on_memory_errors
from hf_pe.quantizers.base import QuantizationSettings
from hf_pe.quantizers.registry import METHODS, MethodName
from hf_pe.settings import Settings
from hf_pe.tasks import TaskData


class Teacher(Settings):
    """Names a teacher.

    Example:
        >>> Teacher(model="my-org/large-classifier", weight=2.0).name
        'my-org/large-classifier'
        >>> Teacher().name
        'the original'
    """

    model: str | None = Field(None, description="Hub id, folder, .gguf file or package:NAME; default: the original")
    weight: float = Field(1.0, gt=0, description="weight of this teacher among all teachers")
    adapter: str | None = Field(None, description="Hub id or folder of a peft adapter for it")
    quantize: MethodName | None = Field(None, description="quantize it while it is loaded, which saves memory")

    @property
    def name(self) -> str:
        """The name for reports: a Hub id or the name of a folder, never a path."""
        if self.model is None:
            return "the original"
        return Path(self.model).name if Path(self.model).expanduser().exists() else self.model

    @field_serializer("model")
    def _nameable(self, model: str | None) -> str | None:
        return None if model is None else self.name

    def load(self, data: TaskData) -> PreTrainedModel:
        """Return the teacher in evaluation mode, without gradients; without settings, it is the original itself.

        Raises:
            UsageError: the teacher cannot be loaded or has another tokenizer, or there is no original.
        """
        if self.model is None and data.teacher is None:
            raise UsageError("distil: there is no teacher; give the original as data.teacher, or name one.")
        if self.model is None and self.adapter is None and self.quantize is None:
            assert data.teacher is not None
            return data.teacher
        if self.model is None:
            raise UsageError(
                "distil.teachers: to use the original with an adapter or quantized, name it: give `model`."
            )
        source = resolve(self.model)
        config = load_config(source)
        model_class = class_for(config, data.task.auto_class)
        options: dict[str, Any] = {}
        if self.quantize:
            quantizer = METHODS[self.quantize]
            kept = quantizer.kept_layers(meta_model(config, model_class), self.quantize)
            options = {"quantization_config": quantizer.config(QuantizationSettings(self.quantize, kept))}
        teacher: Any = load_model(source, model_class, **options)
        require_same_tokens(data.processor, load_processor(source, data.task.processor_class), self.model)
        if self.adapter is not None:
            try:
                if self.quantize:
                    teacher = PeftModel.from_pretrained(teacher, self.adapter)
                else:
                    teacher = merged(teacher, read_adapter(self.adapter))
            except Exception as error:  # damaged files may raise anything
                pass_on_memory_errors(error)
                raise UsageError(
                    f"distil.teachers.adapter: {self.adapter} does not fit {self.model}: {error}"
                ) from error
        frozen_teacher: PreTrainedModel = teacher.eval().requires_grad_(False)
        return frozen_teacher
