"""What makes a teacher fit a student: the same tokens, vocabulary and labels, and weights that are not trained."""

from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.errors import UsageError, listed


def require_same_tokens(student: Any, teacher: Any, name: str) -> None:
    """Refuse a teacher that reads other tokens.

    Raises:
        UsageError: a word has another id, or a text is cut elsewhere.
    """
    ids, teacher_ids = (_vocabulary(processor) for processor in (student, teacher))
    if ids is None or teacher_ids is None:
        return
    differ = sorted(word for word in ids.keys() | teacher_ids.keys() if ids.get(word) != teacher_ids.get(word))
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
    labels, teacher_labels = (dict(config.id2label or {}) for config in (student, teacher))
    if labels != teacher_labels:
        raise UsageError(
            f"distil.teachers: a teacher tells {_short(teacher_labels)} apart, the student {_short(labels)}. "
            "Fine-tune that teacher on the student's labels, in the same order."
        )


def _short(labels: dict[Any, Any]) -> str:
    return listed(str(labels[number]) for number in sorted(labels))


def _vocabulary(processor: Any) -> dict[str, int] | None:
    return dict(processor.get_vocab()) if hasattr(processor, "get_vocab") else None


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
