"""Who teaches: the original, other models, packed or adapted ones; what makes them fit the student."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from pydantic import Field, field_serializer
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.adapters import merged, read_adapter
from hf_pe.anatomy import skeleton
from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.processor import load_processor
from hf_pe.checkpoints.source import resolve
from hf_pe.errors import UsageError, listed, pass_on_memory_errors
from hf_pe.plans import Frozen
from hf_pe.quantizers import bnb as packing
from hf_pe.tasks import TaskData


class Teacher(Frozen):
    """One teacher among several."""

    model: str | None = Field(None, description="Hub id, folder, .gguf file or package:NAME; default: the original")
    weight: float = Field(1.0, gt=0, description="how much it counts beside the others")
    adapter: str | None = Field(None, description="Hub id or folder of a peft adapter on top of it")
    quantize: Literal["nf4", "int8"] | None = Field(None, description="pack it while it is loaded: less memory")

    @property
    def name(self) -> str:
        """What may be printed: a Hub id or a folder's name, never a path."""
        if self.model is None:
            return "the original"
        return Path(self.model).name if Path(self.model).expanduser().exists() else self.model

    @field_serializer("model")
    def _nameable(self, model: str | None) -> str | None:
        return None if model is None else self.name

    def load(self, data: TaskData) -> PreTrainedModel:
        """The teacher in evaluation mode; the original itself where nothing is asked of it.

        Raises:
            UsageError: it cannot be had, has another tokenizer or other labels, or there is no original.
        """
        if self.model is None and data.teacher is None:
            raise UsageError("distil: there is no teacher; give the original as data.teacher, or name one.")
        if self.model is None and self.adapter is None and self.quantize is None:
            assert data.teacher is not None
            return data.teacher
        if self.model is None:
            raise UsageError(
                "distil.teachers: an adapter on the original, or the original packed, has to be named: give `model`."
            )
        source = resolve(self.model)
        config = load_config(source)
        model_class = class_for(config, data.task.auto_class)
        packed: dict[str, Any] = {}
        if self.quantize:
            kept = packing.kept_modules(skeleton(config, model_class), self.quantize)
            packed = {"quantization_config": packing.settings(self.quantize, kept=kept)}
        teacher: Any = load_model(source, model_class, **packed)
        require_same_tokens(data.processor, load_processor(source, model_class.main_input_name), self.model)
        if self.adapter is not None:
            try:
                if self.quantize:
                    teacher = PeftModel.from_pretrained(teacher, self.adapter)
                else:
                    teacher = merged(teacher, read_adapter(self.adapter))
            except Exception as error:  # damaged files may raise anything
                pass_on_memory_errors(error)
                raise UsageError(
                    f"distil.teachers.adapter: {self.adapter} does not fit {self.model}: {error}"
                ) from error
        found: PreTrainedModel = teacher.eval().requires_grad_(False)
        return found


def require_same_tokens(student: Any, teacher: Any, name: str) -> None:
    """Refuse a teacher that reads other tokens.

    Raises:
        UsageError: a word has another id, or a text is cut elsewhere.
    """
    here, there = (_vocabulary(each) for each in (student, teacher))
    if here is None or there is None:
        return
    differ = sorted(word for word in here.keys() | there.keys() if here.get(word) != there.get(word))
    cuts = [each("Don't split 3.14 naïve words!\n  The_end", add_special_tokens=True) for each in (student, teacher)]
    if differ or list(cuts[0]["input_ids"]) != list(cuts[1]["input_ids"]):
        what = f"{len(differ)} words have other ids, '{differ[0]}' is one" if differ else "texts are cut elsewhere"
        raise UsageError(
            f"distil.teachers: {name} has another tokenizer than the student ({what}), so its logits and hidden states "
            "speak of other tokens. Choose a teacher of the same family, or `cosine`, `mse` and `similarity` with a "
            "teacher that was trained on the same embeddings."
        )


def known_ids(processor: Any) -> int | None:
    """Return how many rows of a vocabulary the tokenizer uses: rows behind them only pad it; None without one."""
    tokenizer = getattr(processor, "tokenizer", processor)
    words = _vocabulary(tokenizer)
    return max(words.values()) + 1 if words else None


def require_same_vocabulary(student: int, teacher: int, known: int | None) -> None:
    """Refuse models whose vocabularies differ in more than rows that pad them.

    Args:
        student, teacher: rows of their vocabularies.
        known: see `known_ids`.

    Raises:
        UsageError: they differ in rows that the tokenizer uses, or it is not known which these are.
    """
    if student == teacher or (known is not None and min(student, teacher) >= known):
        return
    sizes = f"the student's vocabulary has {student} rows, the teacher's {teacher}"
    if known is None:
        raise UsageError(
            f"distil: {sizes}; without a tokenizer it is not known whether the other rows only pad it. Give the "
            "tokenizer (processing_class of a Trainer)."
        )
    raise UsageError(
        f"distil: {sizes}, and the tokenizer uses {known}: rows in use are missing, so that the same id means other "
        "tokens to the two. Distil before the vocabulary is cut, or choose a teacher with the same vocabulary."
    )


def require_same_labels(student: PretrainedConfig, teacher: PretrainedConfig) -> None:
    """Refuse a teacher that tells other classes apart.

    Raises:
        UsageError: the configs' labels differ in number, name or order.
    """
    here, there = (dict(config.id2label or {}) for config in (student, teacher))
    if here != there:
        raise UsageError(
            f"distil.teachers: a teacher tells {_short(there)} apart, the student {_short(here)}. "
            "Fine-tune that teacher on the student's labels, in the same order."
        )


def _short(labels: dict[Any, Any]) -> str:
    return listed(str(labels[number]) for number in sorted(labels))


def _vocabulary(processor: Any) -> dict[str, int] | None:
    return dict(processor.get_vocab()) if hasattr(processor, "get_vocab") else None


@contextmanager
def frozen(models: Sequence[PreTrainedModel]) -> Iterator[None]:
    """Let no teacher learn meanwhile; in evaluation mode, which they stay in."""
    wanted = [p for model in models for p in model.parameters() if p.requires_grad]
    for model in models:
        model.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def require_frozen(student: torch.nn.Module, teacher: PreTrainedModel) -> None:
    """Refuse a teacher that would learn along.

    Raises:
        UsageError: it wants gradients, or shares parameters with the student.
    """
    loose = next((name for name, p in teacher.named_parameters() if p.requires_grad), None)
    if loose is not None:
        raise UsageError(
            f"The teacher is left trainable ({loose} wants a gradient): call teacher.requires_grad_(False) first."
        )
    own = {id(p) for p in student.parameters()}
    shared = next((name for name, p in teacher.named_parameters() if id(p) in own), None)
    if shared is not None:
        raise UsageError(f"Teacher and student share parameters ({shared}): give a copy as the teacher.")
