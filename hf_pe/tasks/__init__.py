"""Tasks such as causal language modelling or image classification, one file each.

A task says how the rows of a data set become batches, which outputs of a model a student learns from in distillation,
and by which metrics a model is evaluated. `hf_pe.tasks.base.Task` is their base class, `TASKS` their list.
"""

from hf_pe.tasks.audio_classification import AudioClassification as AudioClassification
from hf_pe.tasks.base import HeldOut as HeldOut
from hf_pe.tasks.base import Task as Task
from hf_pe.tasks.base import TaskData as TaskData
from hf_pe.tasks.batch import ROW as ROW
from hf_pe.tasks.batch import Batch as Batch
from hf_pe.tasks.batch import as_map as as_map
from hf_pe.tasks.batch import as_read_by as as_read_by
from hf_pe.tasks.batch import counted_rows as counted_rows
from hf_pe.tasks.batch import model_inputs as model_inputs
from hf_pe.tasks.batch import on_device as on_device
from hf_pe.tasks.causal_lm import CausalLM as CausalLM
from hf_pe.tasks.embedding import Embedding as Embedding
from hf_pe.tasks.evaluation import EvalResult as EvalResult
from hf_pe.tasks.head import LARGE as LARGE
from hf_pe.tasks.head import TOKENS as TOKENS
from hf_pe.tasks.head import Head as Head
from hf_pe.tasks.head import few_tokens as few_tokens
from hf_pe.tasks.head import keeps_logits as keeps_logits
from hf_pe.tasks.head import states as states
from hf_pe.tasks.image_classification import ImageClassification as ImageClassification
from hf_pe.tasks.labels import require_classes as require_classes
from hf_pe.tasks.likelihood import kl_divergence as kl_divergence
from hf_pe.tasks.likelihood import label_losses as label_losses
from hf_pe.tasks.likelihood import row_sums as row_sums
from hf_pe.tasks.likelihood import rows_within as rows_within
from hf_pe.tasks.likelihood import token_head as token_head
from hf_pe.tasks.masked_lm import MaskedLM as MaskedLM
from hf_pe.tasks.object_detection import ObjectDetection as ObjectDetection
from hf_pe.tasks.prepare import positions as positions
from hf_pe.tasks.prepare import prepare as prepare
from hf_pe.tasks.question_answering import NOWHERE as NOWHERE
from hf_pe.tasks.question_answering import QuestionAnswering as QuestionAnswering
from hf_pe.tasks.registry import TASKS as TASKS
from hf_pe.tasks.registry import TaskName as TaskName
from hf_pe.tasks.registry import hub_metrics as hub_metrics
from hf_pe.tasks.registry import task_class as task_class
from hf_pe.tasks.registry import task_named as task_named
from hf_pe.tasks.seq2seq import Seq2Seq as Seq2Seq
from hf_pe.tasks.text_classification import TextClassification as TextClassification
from hf_pe.tasks.token_classification import TokenClassification as TokenClassification
