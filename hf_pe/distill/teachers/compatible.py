"""Checks that a teacher fits a student: the same tokens, vocabulary and labels, and weights that are not trained."""

from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.errors import UsageError, listed


def require_same_tokens(student: Any, teacher: Any, name: str) -> None:
    """Refuse a teacher whose tokenizer differs from the student's.

    Raises:
        UsageError: a token has another id, or a text is split differently.
    """
    ids, teacher_ids = (_vocabulary(processor) for processor in (student, teacher))
    if ids is None or teacher_ids is None:
        return
    differ = sorted(word for word in ids.keys() | teacher_ids.keys() if ids.get(word) != teacher_ids.get(word))
    text = "Don't split 3.14 naïve words!\n  The_end"
    splits = [list(tokenizer(text, add_special_tokens=True)["input_ids"]) for tokenizer in (student, teacher)]
    if differ or splits[0] != splits[1]:
        what = (
            f"{len(differ)} tokens have other ids, such as '{differ[0]}'" if differ else "texts are split differently"
        )
        raise UsageError(
            f"distil.teachers: {name} has another tokenizer than the student ({what}), so its logits and hidden states "
            "belong to other tokens. Choose a teacher of the same family, or `cosine`, `mse` and `similarity` with a "
            "teacher that was trained on the same embeddings."
        )


def used_vocabulary_size(processor: Any) -> int | None:
    """Return the number of vocabulary rows that the tokenizer uses (further rows only pad it); None without one."""
    tokenizer = getattr(processor, "tokenizer", processor)
    words = _vocabulary(tokenizer)
    return max(words.values()) + 1 if words else None


def require_same_vocabulary(student: int, teacher: int, used: int | None) -> None:
    """Refuse models whose vocabularies differ in more than rows that pad them.

    Args:
        student: rows of the student's vocabulary.
        teacher: rows of the teacher's vocabulary.
        used: see `used_vocabulary_size`.

    Raises:
        UsageError: the vocabularies differ in rows that the tokenizer uses, or there is no tokenizer to tell.
    """
    if student == teacher or (used is not None and min(student, teacher) >= used):
        return
    sizes = f"the student's vocabulary has {student} rows, the teacher's {teacher}"
    if used is None:
        raise UsageError(
            f"distil: {sizes}; without a tokenizer it is not known whether the further rows only pad it. Give the "
            "tokenizer (processing_class of a Trainer)."
        )
    raise UsageError(
        f"distil: {sizes}, and the tokenizer uses {used}: rows in use are missing, so that the same id means different "
        "tokens to the two models. Distil before the vocabulary is cut, or choose a teacher with the same vocabulary."
    )


def require_same_labels(student: PretrainedConfig, teacher: PretrainedConfig) -> None:
    """Refuse a teacher with other labels than the student's.

    Raises:
        UsageError: the labels of the configs differ in number, name or order.
    """
    labels, teacher_labels = (dict(config.id2label or {}) for config in (student, teacher))
    if labels != teacher_labels:
        raise UsageError(
            f"distil.teachers: a teacher has the labels {_short(teacher_labels)}, the student {_short(labels)}. "
            "Fine-tune that teacher on the student's labels, in the same order."
        )


def _short(labels: dict[Any, Any]) -> str:
    return listed(str(labels[number]) for number in sorted(labels))


def _vocabulary(processor: Any) -> dict[str, int] | None:
    return dict(processor.get_vocab()) if hasattr(processor, "get_vocab") else None


def require_frozen(student: torch.nn.Module, teacher: PreTrainedModel) -> None:
    """Refuse a teacher that would be trained with the student.

    Raises:
        UsageError: a parameter of the teacher requires a gradient, or is shared with the student.
    """
    trainable = next((name for name, p in teacher.named_parameters() if p.requires_grad), None)
    if trainable is not None:
        raise UsageError(
            f"The teacher is trainable ({trainable} requires a gradient): call teacher.requires_grad_(False) first."
        )
    own = {id(p) for p in student.parameters()}
    shared = next((name for name, p in teacher.named_parameters() if id(p) in own), None)
    if shared is not None:
        raise UsageError(f"Teacher and student share parameters ({shared}): use a copy as the teacher.")
