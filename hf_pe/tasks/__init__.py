"""The tasks, one file each."""

from hf_pe.errors import UsageError, nearest
from hf_pe.tasks.base import ROW as ROW
from hf_pe.tasks.base import Batch as Batch
from hf_pe.tasks.base import Judged as Judged
from hf_pe.tasks.base import Task as Task
from hf_pe.tasks.base import TaskData as TaskData
from hf_pe.tasks.base import model_inputs as model_inputs
from hf_pe.tasks.causal_lm import CausalLM as CausalLM
from hf_pe.tasks.embedding import Embedding as Embedding
from hf_pe.tasks.text_classification import TextClassification as TextClassification

TASKS: dict[str, type[Task]] = {
    "embedding": Embedding,
    "causal_lm": CausalLM,
    "text_classification": TextClassification,
}


def task_named(name: str) -> Task:
    """Return the task called `name`.

    Raises:
        UsageError: there is none; names the nearest.
    """
    if name not in TASKS:
        raise UsageError(f"task: expected one of {', '.join(TASKS)}; got '{name}'.{nearest(name, TASKS)}")
    return TASKS[name]()
