"""Load who teaches: the original, other models, packed or adapted ones."""

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
from hf_pe.plans import Frozen
from hf_pe.quantizers.base import QuantizationSettings
from hf_pe.quantizers.registry import METHODS, MethodName
from hf_pe.tasks import TaskData


class Teacher(Frozen):
    """One teacher among several.

    Example:
        >>> Teacher(model="my-org/large-classifier", weight=2.0).name
        'my-org/large-classifier'
        >>> Teacher().name
        'the original'
    """

    model: str | None = Field(None, description="Hub id, folder, .gguf file or package:NAME; default: the original")
    weight: float = Field(1.0, gt=0, description="how much it counts beside the others")
    adapter: str | None = Field(None, description="Hub id or folder of a peft adapter on top of it")
    quantize: MethodName | None = Field(None, description="pack it while it is loaded: less memory")

    @property
    def name(self) -> str:
        """What may be printed: a Hub id or a folder's name, never a path."""
        if self.model is None:
            return "the original"
        return Path(self.model).name if Path(self.model).expanduser().exists() else self.model

    @field_serializer("model")
    def _nameable(self, model: str | None) -> str | None:
        return None if model is None else self.name

    def load(self, data: TaskData) -> PreTrainedModel:
        """Return the teacher in evaluation mode; the original itself where nothing is asked of it.

        Raises:
            UsageError: it cannot be had, has another tokenizer or other labels, or there is no original.
        """
        if self.model is None and data.teacher is None:
            raise UsageError("distil: there is no teacher; give the original as data.teacher, or name one.")
        if self.model is None and self.adapter is None and self.quantize is None:
            assert data.teacher is not None
            return data.teacher
        if self.model is None:
            raise UsageError(
                "distil.teachers: an adapter on the original, or the original packed, has to be named: give `model`."
            )
        source = resolve(self.model)
        config = load_config(source)
        model_class = class_for(config, data.task.auto_class)
        packed: dict[str, Any] = {}
        if self.quantize:
            quantizer = METHODS[self.quantize]
            kept = quantizer.kept_layers(meta_model(config, model_class), self.quantize)
            packed = {"quantization_config": quantizer.config(QuantizationSettings(self.quantize, kept))}
        teacher: Any = load_model(source, model_class, **packed)
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
