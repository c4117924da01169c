"""How alike a model and its teacher answer the batches of a stock Trainer, whatever the task."""

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


class Alike(NamedTuple):
    """Two models' answers to one batch.

    Attributes:
        values: how alike each pair of answers is, from 0 (for states: from -1) to 1.
        weights: how much each counts. *Shape:* that of `values`
    """

    values: torch.Tensor
    weights: torch.Tensor


def teacher_agreement(model: PreTrainedModel, teacher: PreTrainedModel, loader: Any, batches: int) -> float:
    """Return the fraction of equal answers of two models, for states without a head their mean cosine.

    An answer is the class of an example or of a token, the first or the last token of a span, or an object that a
    detector detects in an image, by its class. Padding and tokens without a label are left out. Over all processes
    where there are several.

    Args:
        model, teacher: of the same kind.
        loader: batches of the evaluation data, as the Trainer gives them to the model.
        batches: how many of them are compared.

    Raises:
        UsageError: there are no evaluation data.
    """
    if loader is None:
        raise UsageError("CompressionReport: the Trainer has no evaluation data; give it an eval_dataset.")
    total = torch.zeros(2, dtype=torch.float64)
    with evaluating(model):
        for batch in itertools.islice(iter(loader), batches):
            alike = _compared(model, teacher, batch)
            total += torch.stack([(alike.values * alike.weights).sum(), alike.weights.sum()]).double().cpu()
    if dist.is_available() and dist.is_initialized():
        shared = total.to(model.device) if dist.get_backend() == "nccl" else total
        dist.all_reduce(shared)
        total = shared.cpu()
    return float(total[0] / total[1]) if total[1] else 1.0  # detectors that both detect nothing


def require_comparable(model: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Refuse states of different widths, which have no cosine.

    Raises:
        UsageError: models without a head, one narrower than the other.
    """
    widths = [getattr(each.config, "hidden_size", None) for each in (model, teacher)]
    if model.base_model is model and widths[0] != widths[1]:
        raise UsageError(
            f"CompressionReport: the model's hidden states are {widths[0]} wide and the teacher's {widths[1]}, so that "
            "their agreement cannot be measured. Leave the callback out, or use hf_pe.Distillation, whose report "
            "compares the similarities of pairs of sentences."
        )


def _compared(model: PreTrainedModel, teacher: PreTrainedModel, batch: Any) -> Alike:
    inputs, labels = _inputs_and_labels(model, batch)
    one, other = result_of(model, inputs), result_of(teacher, inputs)
    mask = inputs.get("attention_mask")
    if "start_logits" in one:
        return _equal(_spans(one, mask), _spans(other, mask), None)
    if "logits" not in one:
        return _cosines(tensors_of(one)[0], tensors_of(other)[0], mask)
    if _is_loaded_by(AutoModelForObjectDetection, model):
        return _shared_objects(_objects(one.logits, model), _objects(other.logits, teacher), model)
    shifted = _is_loaded_by(AutoModelForCausalLM, model) and labels is not None
    counted = labels if labels is not None else mask.masked_fill(mask == 0, -100) if mask is not None else None
    return _equal(one.logits.argmax(-1), other.logits.argmax(-1), _next(counted) if shifted else counted)


def _inputs_and_labels(model: PreTrainedModel, batch: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """Return what the model reads of a batch, and its labels where they are one tensor.

    A sequence to sequence model without inputs of its decoder keeps the labels: it makes these inputs of them itself.
    """
    tensors = {k: v.to(model.device) for k, v in batch.items() if isinstance(v, torch.Tensor)}
    targets = find_labels(type(model))
    inputs, labels = {k: v for k, v in tensors.items() if k not in targets}, tensors.get("labels")
    decodes = model.config.is_encoder_decoder and not {"decoder_input_ids", "decoder_inputs_embeds"} & inputs.keys()
    return (inputs | {"labels": labels} if decodes and labels is not None and labels.ndim > 1 else inputs), labels


def _is_loaded_by(auto_class: Any, model: PreTrainedModel) -> bool:
    known = auto_class._model_mapping.get(type(model.config), ())
    return type(model) in (known if isinstance(known, tuple) else (known,))


def _next(labels: torch.Tensor | None) -> torch.Tensor | None:
    """Move labels to the places where a causal model predicts them: one token earlier."""
    return None if labels is None else torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)


def _equal(one: torch.Tensor, other: torch.Tensor, labels: torch.Tensor | None) -> Alike:
    """Compare classes; those without a label (-100) do not count."""
    alike = (one == other).double()
    apart = labels is None or labels.shape != alike.shape
    return Alike(alike, torch.ones_like(alike) if apart else (labels != -100).double())  # type: ignore[union-attr]


def _spans(result: Any, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the likeliest first and last token of each row. *Shape:* (batch, 2)"""
    logits = torch.stack([result.start_logits, result.end_logits], 1)
    return (logits if mask is None else logits.masked_fill(mask[:, None] == 0, NOWHERE)).argmax(-1)


def _cosines(one: torch.Tensor, other: torch.Tensor, mask: torch.Tensor | None) -> Alike:
    """Compare states token by token; padding does not count."""
    alike = torch.cosine_similarity(one.double(), other.double(), dim=-1)
    return Alike(alike, mask if mask is not None and mask.shape == alike.shape else torch.ones_like(alike))


def _objects(logits: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    """Return the class that each query of a detector detects, or `NOTHING`.

    Where one class more than the labels stands for "nothing" (DETR) it is the likeliest one; else each label has a
    probability of its own, and one above one half is a detection.
    """
    best = logits.argmax(-1)
    softmax = logits.shape[-1] == (model.config.num_labels or 0) + 1
    empty = best == logits.shape[-1] - 1 if softmax else logits.amax(-1) <= 0
    return best.masked_fill(empty, NOTHING)


def _shared_objects(one: torch.Tensor, other: torch.Tensor, model: PreTrainedModel) -> Alike:
    """Compare how many objects of each class two detectors detect in an image.

    With m and n of a class, min(m, n) of max(m, n) objects are shared: queries need not come in the same order.
    """
    classes = range(model.config.num_labels or 0)
    counts = [torch.stack([(each == label).sum(-1) for label in classes], -1).double() for each in (one, other)]
    least, most = torch.minimum(*counts), torch.maximum(*counts)
    return Alike(least / most.clamp_min(1), most)
