"""Lists the tasks, one line each; recipe files, their schema, the command line and the documentation use the list."""

from typing import Annotated

from hf_pe.errors import UsageError, nearest
from hf_pe.registered_names import RegisteredName
from hf_pe.tasks.audio_classification import AudioClassification
from hf_pe.tasks.base import Task
from hf_pe.tasks.causal_lm import CausalLM
from hf_pe.tasks.embedding import Embedding
from hf_pe.tasks.image_classification import ImageClassification
from hf_pe.tasks.masked_lm import MaskedLM
from hf_pe.tasks.object_detection import ObjectDetection
from hf_pe.tasks.question_answering import QuestionAnswering
from hf_pe.tasks.seq2seq import Seq2Seq
from hf_pe.tasks.text_classification import TextClassification
from hf_pe.tasks.token_classification import TokenClassification

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Embedding,
        CausalLM,
        TextClassification,
        TokenClassification,
        QuestionAnswering,
        MaskedLM,
        Seq2Seq,
        ImageClassification,
        AudioClassification,
        ObjectDetection,
    )
}
"""The class of each task, by its name in recipe files."""


TaskName = Annotated[str, RegisteredName(TASKS)]
"""The name of a task in a recipe file."""


def task_class(name: str) -> type[Task]:
    """Return the class of the task called `name`.

    Raises:
        UsageError: no task has that name; the message suggests the most similar one.
    """
    if name not in TASKS:
        raise UsageError(f"task: expected one of {', '.join(TASKS)}; got '{name}'.{nearest(name, TASKS)}")
    return TASKS[name]


def task_named(name: str) -> Task:
    """Return the task called `name`, with its default settings.

    Raises:
        UsageError: no task has that name; the message suggests the most similar one.

    Example:
        >>> task_named("causal_lm").metric
        'perplexity'
    """
    return task_class(name)()


def hub_metrics(task: type[Task] | None = None) -> dict[str, str]:
    """Return the Hub's name of each metric whose name on the Hub differs from that in hf_pe.

    Args:
        task: a task class that may be missing from `TASKS`.

    Example:
        >>> hub_metrics()["spearman"]
        'spearmanr'
    """
    tasks = [*TASKS.values(), *([task] if task else [])]
    return {metric: name for task_type in tasks for metric, name in task_type.hub_metrics.items()}
