"""The tasks, one line each."""

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
    "embedding": Embedding,
    "causal_lm": CausalLM,
    "text_classification": TextClassification,
    "token_classification": TokenClassification,
    "question_answering": QuestionAnswering,
    "masked_lm": MaskedLM,
    "seq2seq": Seq2Seq,
    "image_classification": ImageClassification,
    "audio_classification": AudioClassification,
    "object_detection": ObjectDetection,
}


def task_named(name: str) -> Task:
    """Return the task called `name`.

    Raises:
        UsageError: there is none; names the nearest.
    """
    if name not in TASKS:
        raise UsageError(f"task: expected one of {', '.join(TASKS)}; got '{name}'.{nearest(name, TASKS)}")
    return TASKS[name]()
