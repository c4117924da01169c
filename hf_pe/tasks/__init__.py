"""The tasks, one file each."""

from hf_pe.errors import UsageError, nearest
from hf_pe.tasks.audio_classification import AudioClassification as AudioClassification
from hf_pe.tasks.base import ROW as ROW
from hf_pe.tasks.base import Batch as Batch
from hf_pe.tasks.base import Judged as Judged
from hf_pe.tasks.base import Task as Task
from hf_pe.tasks.base import TaskData as TaskData
from hf_pe.tasks.base import as_map as as_map
from hf_pe.tasks.base import as_read_by as as_read_by
from hf_pe.tasks.base import counted_rows as counted_rows
from hf_pe.tasks.base import model_inputs as model_inputs
from hf_pe.tasks.causal_lm import CausalLM as CausalLM
from hf_pe.tasks.embedding import Embedding as Embedding
from hf_pe.tasks.head import LARGE as LARGE
from hf_pe.tasks.head import TOKENS as TOKENS
from hf_pe.tasks.head import Head as Head
from hf_pe.tasks.head import few_tokens as few_tokens
from hf_pe.tasks.head import keeps_logits as keeps_logits
from hf_pe.tasks.head import states as states
from hf_pe.tasks.image_classification import ImageClassification as ImageClassification
from hf_pe.tasks.labels import require_classes as require_classes
from hf_pe.tasks.likelihood import label_losses as label_losses
from hf_pe.tasks.likelihood import rows_within as rows_within
from hf_pe.tasks.likelihood import token_head as token_head
from hf_pe.tasks.masked_lm import MaskedLM as MaskedLM
from hf_pe.tasks.object_detection import ObjectDetection as ObjectDetection
from hf_pe.tasks.prepare import positions as positions
from hf_pe.tasks.prepare import prepare as prepare
from hf_pe.tasks.question_answering import NOWHERE as NOWHERE
from hf_pe.tasks.question_answering import QuestionAnswering as QuestionAnswering
from hf_pe.tasks.seq2seq import Seq2Seq as Seq2Seq
from hf_pe.tasks.text_classification import TextClassification as TextClassification
from hf_pe.tasks.token_classification import TokenClassification as TokenClassification

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
