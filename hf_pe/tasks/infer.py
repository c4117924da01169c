"""Infers the task from the class that a checkpoint names, or from that of a loaded model."""

from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.source import Source
from hf_pe.errors import UsageError
from hf_pe.tasks.base import Task
from hf_pe.tasks.labels import require_classes
from hf_pe.tasks.registry import TASKS, task_class


def find_task(task: str | Task | None, source: Source, config: PretrainedConfig) -> Task:
    """Return the named task, else the one whose class the checkpoint names.

    Raises:
        UsageError: no task is named and none fits, or the model does something that no task here does: it writes what
            it hears or sees (Whisper), or predicts a number (a reranker).
    """
    if task is not None and not isinstance(task, str):
        return task
    kind = _inferred(source, config) if task is None else task_class(task)
    if kind.classifies:
        require_classes(config)
    return kind.of_checkpoint(source)


def task_of_class(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> type[Task] | None:
    """Return the task whose auto class makes models of `model_class`; where several do, that of the class's name.

    BART has one class for two auto classes: AutoModelForSeq2SeqLM and AutoModelForMaskedLM.
    """
    named = _of_name(model_class.__name__)
    kinds = ([named] if named else []) + list(TASKS.values())
    return next((kind for kind in kinds if _makes(kind, config, model_class)), None)


def _inferred(source: Source, config: PretrainedConfig) -> type[Task]:
    class_name = (config.architectures or [""])[0]
    kind = _of_name(class_name) or next((kind for kind in TASKS.values() if kind.recognizes(source)), None)
    if kind is None:
        raise UsageError(
            f"task: cannot be told from {class_name or 'the config'}; expected one of {', '.join(TASKS)}. Where none "
            "is what the model does, hf-pe cut, hf-pe quantize and hf-pe export work without data."
        )
    kind.require_inferred(config)
    return kind


def _of_name(class_name: str) -> type[Task] | None:
    """Return the task that has the longest ending of the name of a class."""
    endings = {ending: kind for kind in TASKS.values() for ending in kind.architectures if class_name.endswith(ending)}
    return endings[max(endings, key=len)] if endings else None


def _makes(kind: type[Task], config: PretrainedConfig, model_class: type[PreTrainedModel]) -> bool:
    try:
        return class_for(config, kind.auto_class) is model_class
    except UsageError:
        return False
