"""The student while it learns: a copy that can be trained, and what becomes of it at the end."""

import copy
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from hf_pe.distill.precision import restore_dtypes_, upcast_
from hf_pe.distill.settings import DistillationSettings

MAX_MOMENTUM = 0.5
"""A batch norm's momentum above which its running statistics are those of the last batches only: transformers'
MobileNets and EfficientNets have 0.99 and more. They learn with `MOMENTUM`."""
MOMENTUM = 0.1


def learner_of(model: PreTrainedModel, settings: DistillationSettings) -> Any:
    """Return a float32 copy of a model that is ready to be trained; or its weights as they are, with float32 adapters.

    Args:
        model: the student; stays as it is.
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
            module.p = 0.0  # noise that the teacher's target does not have
        if isinstance(module, _BatchNorm) and (module.momentum or 0) > MAX_MOMENTUM:
            module.momentum = MOMENTUM
    return settings.lora.wrapped(student, model) if settings.lora else student


def student_of(learner: Any, model: PreTrainedModel, settings: DistillationSettings) -> PreTrainedModel:
    """Return the trained student, in evaluation mode, with the dtypes, dropout and momentum of the one before.

    Args:
        learner: what `learner_of` gave, trained; used up.
        model: the student before; stays as it is.
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
    """Let all parameters that can have a gradient have one; packed codes cannot."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
