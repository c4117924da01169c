"""Infers the task from the class that a checkpoint names."""

from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
)

from hf_pe.checkpoints.sentence_source import is_sentence_transformer, sentence_modules
from hf_pe.checkpoints.source import Source
from hf_pe.errors import UsageError
from hf_pe.tasks.base import Task
from hf_pe.tasks.embedding import Embedding
from hf_pe.tasks.labels import require_classes
from hf_pe.tasks.registry import TASKS, task_named

ENDINGS = {
    "ForCausalLM": "causal_lm",
    "LMHeadModel": "causal_lm",
    "ForSequenceClassification": "text_classification",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "question_answering",
    "ForMaskedLM": "masked_lm",
    "ForConditionalGeneration": "seq2seq",
    "ForImageClassification": "image_classification",
    "ForAudioClassification": "audio_classification",
    "ForObjectDetection": "object_detection",
}
"""How the classes of each task's models end."""


def find_task(task: str | Task | None, source: Source, config: PretrainedConfig) -> Task:
    """Return the named task, else the one whose class the checkpoint names.

    Raises:
        UsageError: no task is named and none fits, or the model does something that no task here does: it writes what
            it hears or sees (Whisper), or predicts a number (a reranker).
    """
    if task is not None and not isinstance(task, str):
        return task
    if task is None:
        named = (config.architectures or [""])[0]
        fallback = "embedding" if is_sentence_transformer(source) else None
        task = next((t for ending, t in ENDINGS.items() if named.endswith(ending)), fallback)
        if task is None:
            raise UsageError(
                f"task: cannot be told from {named or 'the config'}; expected one of {', '.join(TASKS)}. Where none is "
                "what the model does, hf-pe cut, hf-pe quantize and hf-pe export work without data."
            )
        if task == "seq2seq":
            _require_text_to_text(named, config)
    found = Embedding(sentence_modules(source)) if task == "embedding" else task_named(task)
    if found.auto_class.endswith("Classification"):
        require_classes(config)
    return found


def _require_text_to_text(named: str, config: PretrainedConfig) -> None:
    """Refuse a model that reads sound or images, or that has no decoder of its own, and writes text."""
    kind: Any = AutoModelForSeq2SeqLM._model_mapping.get(type(config), None)
    if kind is not None and config.is_encoder_decoder and kind.main_input_name == "input_ids":
        return
    own: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    text = " For its text model alone: task: causal_lm." if own is not None and own.__name__ == named else ""
    raise UsageError(
        f"{named} does not turn a text into a text: training and evaluation of models that read sound or images and "
        f"write text are not supported yet. hf-pe cut, hf-pe quantize and hf-pe export work.{text}"
    )
