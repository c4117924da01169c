"""The tasks, one line each: recipe files, their schema, the command line and the documentation follow from this."""

from typing import Annotated, Any, Literal

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema

from hf_pe.errors import UsageError, nearest
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
"""By name in recipe files."""


class _OneOf:
    """Makes pydantic read a field as one of the names in `TASKS`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler.generate_schema(Literal[tuple(TASKS)])


TaskName = Annotated[str, _OneOf()]
"""The name of a task in a recipe file."""


def task_class(name: str) -> type[Task]:
    """Return the class of the task called `name`.

    Raises:
        UsageError: there is none; names the nearest.
    """
    if name not in TASKS:
        raise UsageError(f"task: expected one of {', '.join(TASKS)}; got '{name}'.{nearest(name, TASKS)}")
    return TASKS[name]


def task_named(name: str) -> Task:
    """Return the task called `name`, with its default settings.

    Raises:
        UsageError: there is none; names the nearest.

    Example:
        >>> task_named("causal_lm").metric
        'perplexity'
    """
    return task_class(name)()


def hub_metrics(task: type[Task] | None = None) -> dict[str, str]:
    """Return the Hub's names of the metrics of all tasks, and of `task` where it is none of `TASKS`.

    Example:
        >>> hub_metrics()["spearman"]
        'spearmanr'
    """
    tasks = [*TASKS.values(), *([task] if task else [])]
    return {metric: name for each in tasks for metric, name in each.hub_metrics.items()}
