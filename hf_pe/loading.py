"""Describes how a result is loaded, as plain data.

The lines of a result's card are built from it, and checks call the same classes. A report states names of known
classes, and anything else is refused when it is read, so that no code from a report is run.
"""

import json
import re
from typing import Literal

import transformers
from pydantic import Field, field_validator

from hf_pe.plans import Frozen

AUTO_CLASSES = {
    "sentence-similarity": "AutoModel",
    "feature-extraction": "AutoModel",
    "text-generation": "AutoModelForCausalLM",
    "fill-mask": "AutoModelForMaskedLM",
    "text2text-generation": "AutoModelForSeq2SeqLM",
    "translation": "AutoModelForSeq2SeqLM",
    "question-answering": "AutoModelForQuestionAnswering",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
    "audio-classification": "AutoModelForAudioClassification",
    "automatic-speech-recognition": "AutoModelForSpeechSeq2Seq",
    "object-detection": "AutoModelForObjectDetection",
}
"""The auto class of each task of the Hub, for older reports, which do not state it; a new task needs no entry."""
ProcessorClass = Literal["AutoTokenizer", "AutoImageProcessor", "AutoFeatureExtractor", "AutoProcessor"]
PROCESSORS: dict[str, ProcessorClass] = {
    "image-classification": "AutoImageProcessor",
    "object-detection": "AutoImageProcessor",
    "audio-classification": "AutoFeatureExtractor",
    "automatic-speech-recognition": "AutoProcessor",
}
"""The class that makes the inputs of a task, for reports that do not state it; other tasks have a tokenizer."""


class Loading(Frozen):
    """Name the stock classes that load a result, and their arguments."""

    auto_class: str = Field(description="auto class of transformers that loads the model")
    processor_class: ProcessorClass | None = Field(None, description="auto class of its tokenizer or processor")
    plugin: bool = Field(False, description="hf_pe.plugin is imported first, for the result's custom modules")
    trust_remote_code: bool = Field(False, description="the result has Python code of its own, which has to be allowed")
    revision: str | None = Field(None, description="branch on the Hub where it is not the main one")

    @field_validator("auto_class")
    @classmethod
    def _require_known_class(cls, name: str) -> str:
        if re.fullmatch(r"AutoModel[A-Za-z0-9]*", name) is None or not hasattr(transformers, name):
            raise ValueError("expected the name of an AutoModel class of transformers, such as AutoModelForCausalLM")
        return name

    def lines(self, name: str) -> str:
        """Return the Python lines that load the result, for its card.

        Args:
            name: of the result: a folder or an id on the Hub, which is quoted as one string.
        """
        loaders = [self.auto_class, *([self.processor_class] if self.processor_class else [])]
        variables = ["model", "tokenizer" if self.processor_class == "AutoTokenizer" else "processor"]
        calls = [f"{variable} = {loader}.from_pretrained({self.arguments(name)})"
                 for variable, loader in zip(variables, loaders, strict=False)]  # fmt: skip
        first = ["import hf_pe.plugin"] if self.plugin else []
        return "\n".join([*first, f"from transformers import {', '.join(loaders)}", "", *calls])

    def arguments(self, name: str) -> str:
        """Return the arguments of each call that loads the result `name`, as text."""
        arguments = [_quoted(name)]
        arguments += [f"revision={_quoted(self.revision)}"] if self.revision is not None else []
        return ", ".join([*arguments, *(["trust_remote_code=True"] if self.trust_remote_code else [])])


def loading_of_task(pipeline_tag: str, *, plugin: bool) -> Loading:
    """Return how a result of a task is loaded, where its report does not state it.

    Args:
        pipeline_tag: the Hub's name of the task.
        plugin: the result has custom modules.
    """
    return Loading(
        auto_class=AUTO_CLASSES.get(pipeline_tag, "AutoModel"),
        processor_class=PROCESSORS.get(pipeline_tag, "AutoTokenizer"),
        plugin=plugin,
    )


def _quoted(text: str) -> str:
    """Return `text` as a string literal of Python and JSON, with quotes and line breaks escaped."""
    return json.dumps(text, ensure_ascii=False)
