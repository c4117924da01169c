"""Infers the task from the class that a checkpoint names, or from that of a loaded model."""

from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.source import Source
from hf_pe.errors import UsageError
from hf_pe.tasks.base import Task
from hf_pe.tasks.labels import require_classes
from hf_pe.tasks.registry import TASKS, task_class


def find_task(task: str | Task | None, source: Source, config: PretrainedConfig) -> Task:
    """Return the named task, or else infer it from the model class that the checkpoint names.

    Raises:
        UsageError: no task is named and none fits, or the model does something that no task covers: it writes text
            about sound or images (Whisper), or predicts a number (a reranker).
    """
    if task is not None and not isinstance(task, str):
        return task
    kind = _inferred(source, config) if task is None else task_class(task)
    if kind.classifies:
        require_classes(config)
    return kind.of_checkpoint(source)


def task_of_class(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> type[Task] | None:
    """Return the task whose auto class makes models of `model_class`; the name of the class decides between several.

    BART has one class for two auto classes: AutoModelForSeq2SeqLM and AutoModelForMaskedLM.
    """
    by_name = _of_name(model_class.__name__)
    candidates = ([by_name] if by_name else []) + list(TASKS.values())
    return next((task for task in candidates if _makes(task, config, model_class)), None)


def _inferred(source: Source, config: PretrainedConfig) -> type[Task]:
    class_name = (config.architectures or [""])[0]
    kind = _of_name(class_name) or next((kind for kind in TASKS.values() if kind.recognizes(source)), None)
    if kind is None:
        raise UsageError(
            f"task: cannot be inferred from {class_name or 'the config'}; expected one of {', '.join(TASKS)}. If the "
            "model does none of these, hf-pe cut, hf-pe quantize and hf-pe export still work: they need no data."
        )
    kind.require_inferred(config)
    return kind


def _of_name(class_name: str) -> type[Task] | None:
    """Return the task with the longest ending of `architectures` that a class name ends in; None if none matches."""
    endings = {ending: kind for kind in TASKS.values() for ending in kind.architectures if class_name.endswith(ending)}
    return endings[max(endings, key=len)] if endings else None


def _makes(kind: type[Task], config: PretrainedConfig, model_class: type[PreTrainedModel]) -> bool:
    try:
        return class_for(config, kind.auto_class) is model_class
    except UsageError:
        return False
