"""Measures how often a model and its teacher predict the same on batches of a Trainer, whatever the task is."""

import itertools
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoModelForObjectDetection, PreTrainedModel
from transformers.utils.generic import find_labels

from hf_pe.dummies.outputs import result_of, tensors_of
from hf_pe.errors import UsageError
from hf_pe.modes import evaluating
from hf_pe.tasks import NOWHERE

NOTHING = -1
"""The class of a detector's query that detects no object."""


class Similarities(NamedTuple):
    """Compares the predictions of two models for one batch.

    Attributes:
        values: similarity of each pair of predictions, from 0 to 1, or from -1 for hidden states.
        weights: how much each pair counts. *Shape:* that of `values`
    """

    values: torch.Tensor
    weights: torch.Tensor


def teacher_agreement(model: PreTrainedModel, teacher: PreTrainedModel, loader: Any, batches: int) -> float:
    """Return the fraction of equal predictions of two models; of models without a head, the mean cosine of states.

    A prediction is the class of an example or of a token, the first or the last token of a span, or the class of an
    object that a detector finds in an image. Padding and tokens without a label do not count. The fraction is over the
    batches of all processes.

    Args:
        model: the smaller model.
        teacher: a model with the same head.
        loader: the evaluation data loader of the Trainer.
        batches: number of batches to compare.

    Raises:
        UsageError: the Trainer has no evaluation data.
    """
    if loader is None:
        raise UsageError("CompressionReport: the Trainer has no evaluation data; give it an eval_dataset.")
    total = torch.zeros(2, dtype=torch.float64)
    with evaluating(model):
        for batch in itertools.islice(iter(loader), batches):
            values, weights = _compared(model, teacher, batch)
            total += torch.stack([(values * weights).sum(), weights.sum()]).double().cpu()
    if dist.is_available() and dist.is_initialized():
        shared = total.to(model.device) if dist.get_backend() == "nccl" else total
        dist.all_reduce(shared)
        total = shared.cpu()
    return float(total[0] / total[1]) if total[1] else 1.0  # detectors that both detect nothing


def require_comparable(model: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Refuse models without a head whose hidden states have different widths, and so no cosine.

    Raises:
        UsageError: they are such models.
    """
    widths = [getattr(m.config, "hidden_size", None) for m in (model, teacher)]
    if model.base_model is model and widths[0] != widths[1]:
        raise UsageError(
            f"CompressionReport: the model's hidden states are {widths[0]} wide and the teacher's {widths[1]}, so that "
            "their agreement cannot be measured. Leave the callback out, or use hf_pe.Distillation, whose report "
            "compares the similarities of pairs of sentences."
        )


def _compared(model: PreTrainedModel, teacher: PreTrainedModel, batch: Any) -> Similarities:
    inputs, labels = _inputs_and_labels(model, batch)
    outputs, teacher_outputs = result_of(model, inputs), result_of(teacher, inputs)
    mask = inputs.get("attention_mask")
    if "start_logits" in outputs:
        return _equal(_spans(outputs, mask), _spans(teacher_outputs, mask), None)
    if "logits" not in outputs:
        return _cosines(tensors_of(outputs)[0], tensors_of(teacher_outputs)[0], mask)
    logits, teacher_logits = outputs.logits, teacher_outputs.logits
    if _is_loaded_by(AutoModelForObjectDetection, model):
        return _shared_objects(_objects(logits, model), _objects(teacher_logits, teacher), model)
    shifted = _is_loaded_by(AutoModelForCausalLM, model) and labels is not None
    counted = labels if labels is not None else mask.masked_fill(mask == 0, -100) if mask is not None else None
    return _equal(logits.argmax(-1), teacher_logits.argmax(-1), _next(counted) if shifted else counted)


def _inputs_and_labels(model: PreTrainedModel, batch: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """Return the model's inputs in a batch, and its labels if they are one tensor.

    For a sequence-to-sequence model without decoder inputs the labels are inputs too: it derives its decoder inputs
    from them.
    """
    tensors = {k: v.to(model.device) for k, v in batch.items() if isinstance(v, torch.Tensor)}
    targets = find_labels(type(model))
    inputs, labels = {k: v for k, v in tensors.items() if k not in targets}, tensors.get("labels")
    decodes = model.config.is_encoder_decoder and not {"decoder_input_ids", "decoder_inputs_embeds"} & inputs.keys()
    return (inputs | {"labels": labels} if decodes and labels is not None and labels.ndim > 1 else inputs), labels


def _is_loaded_by(auto_class: Any, model: PreTrainedModel) -> bool:
    classes = auto_class._model_mapping.get(type(model.config), ())
    return type(model) in (classes if isinstance(classes, tuple) else (classes,))


def _next(labels: torch.Tensor | None) -> torch.Tensor | None:
    """Return labels moved to the position where a causal model predicts them, one token earlier."""
    return None if labels is None else torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)


def _equal(classes: torch.Tensor, teacher_classes: torch.Tensor, labels: torch.Tensor | None) -> Similarities:
    """Compare classes; those whose label is -100 do not count."""
    equal = (classes == teacher_classes).double()
    unlabelled = labels is None or labels.shape != equal.shape
    weights = torch.ones_like(equal) if unlabelled else (labels != -100).double()  # type: ignore[union-attr]
    return Similarities(equal, weights)


def _spans(result: Any, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the most likely first and last token of each row. *Shape:* (batch, 2)."""
    logits = torch.stack([result.start_logits, result.end_logits], 1)
    return (logits if mask is None else logits.masked_fill(mask[:, None] == 0, NOWHERE)).argmax(-1)


def _cosines(states: torch.Tensor, teacher_states: torch.Tensor, mask: torch.Tensor | None) -> Similarities:
    """Compare hidden states token by token; padding does not count."""
    cosines = torch.cosine_similarity(states.double(), teacher_states.double(), dim=-1)
    weights = mask if mask is not None and mask.shape == cosines.shape else torch.ones_like(cosines)
    return Similarities(cosines, weights)


def _objects(logits: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    """Return the class that each query of a detector detects, or `NOTHING`.

    If the model has a class for "no object" (DETR), the most likely class counts. If it decides on each label by
    itself, a label with a probability above one half is a detection.
    """
    best = logits.argmax(-1)
    softmax = logits.shape[-1] == (model.config.num_labels or 0) + 1
    empty = best == logits.shape[-1] - 1 if softmax else logits.amax(-1) <= 0
    return best.masked_fill(empty, NOTHING)


def _shared_objects(objects: torch.Tensor, teacher_objects: torch.Tensor, model: PreTrainedModel) -> Similarities:
    """Compare how many objects of each class two detectors find in an image.

    If they find m and n objects of a class, min(m, n) of max(m, n) objects are shared, whatever the order of queries.
    """
    labels = range(model.config.num_labels or 0)
    counts = [
        torch.stack([(classes == label).sum(-1) for label in labels], -1).double()
        for classes in (objects, teacher_objects)
    ]
    least, most = torch.minimum(*counts), torch.maximum(*counts)
    return Similarities(least / most.clamp_min(1), most)
