"""Prepares a copy of the student for training, and turns it into the student of the result afterwards."""

import copy
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from hf_pe.distill.precision import restore_dtypes_, upcast_
from hf_pe.distill.settings import DistillationSettings

MAX_MOMENTUM = 0.5
"""Momentum of a batch norm above which its running statistics depend on the last batches only. The MobileNets and
EfficientNets of transformers have 0.99 and more; they are trained with `MOMENTUM`."""
MOMENTUM = 0.1


def learner_of(model: PreTrainedModel, settings: DistillationSettings) -> Any:
    """Return a copy of a model that is ready for training: in float32, or as stored with float32 adapters.

    Args:
        model: the student; is not changed.
        settings: of the distillation.
    """
    student = settings.lora.base_of(model) if settings.lora else copy.deepcopy(model)
    if not settings.lora:
        upcast_(student)
    require_gradients_(student.train())
    for module in student.modules():
        if isinstance(module, nn.Embedding) and not settings.train_embeddings:
            module.requires_grad_(False)
        if isinstance(module, nn.Dropout) and not settings.dropout:
            module.p = 0.0  # the teacher's outputs do not have this noise
        if isinstance(module, _BatchNorm) and (module.momentum or 0) > MAX_MOMENTUM:
            module.momentum = MOMENTUM
    return settings.lora.wrapped(student, model) if settings.lora else student


def student_of(learner: Any, model: PreTrainedModel, settings: DistillationSettings) -> PreTrainedModel:
    """Return the trained student, in evaluation mode, with the dtypes, dropout and momentum that it had before.

    Args:
        learner: the trained result of `learner_of`; cannot be used afterwards.
        model: the student before training; is not changed.
        settings: of the distillation.
    """
    student: PreTrainedModel = settings.lora.ended(learner, model) if settings.lora else learner
    for name, original in model.named_modules():
        module = student.get_submodule(name)
        if isinstance(module, nn.Dropout) and isinstance(original, nn.Dropout):
            module.p = original.p
        if isinstance(module, _BatchNorm) and isinstance(original, _BatchNorm):
            module.momentum = original.momentum
    restore_dtypes_(student, model)
    require_gradients_(student.eval())
    return student


def require_gradients_(model: nn.Module) -> None:
    """Enable the gradients of all parameters that can have one; quantized weights cannot."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
