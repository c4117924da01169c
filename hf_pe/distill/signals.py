"""Computes all signals of a model that losses may compare, by one forward pass over a batch."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn

from hf_pe.distill.attention import recorded_attentions
from hf_pe.distill.logit_source import ChunkedLogits
from hf_pe.distill.losses.masked_mean import Signals
from hf_pe.stitching import read_by
from hf_pe.tasks import Batch, Head, Task, states


class SignalRequest(NamedTuple):
    """Names the signals to compute.

    Attributes:
        task: computes the signals of a model, other than attention and features.
        hidden: whether hidden states are needed.
        attentions: whether queries, keys, values and attention weights are needed.
    """

    task: Task
    hidden: bool = False
    attentions: bool = False


def whole_signals(model: Any, batch: Batch, request: SignalRequest, label_head: nn.Module | None = None) -> Signals:
    """Return a model's signals with all logits.

    Args:
        model: student or teacher, possibly wrapped.
        batch: as the task's collator makes it.
        request: the signals to compute.
        label_head: a module of the model, whose inputs are then the signal `features`.
    """
    with _recording(request.attentions) as attentions, read_by(label_head) as features:
        signals = dict(request.task.signals(model, batch, hidden=request.hidden))
    if request.attentions:
        signals["attentions"] = attentions
    if features:
        signals["features"] = features[-1]
    return signals


def chunked_signals(model: Any, head: Head, batch: Batch, positions: torch.Tensor, request: SignalRequest) -> Signals:
    """Return a model's signals with logits that are computed in chunks.

    Args:
        model: student or teacher, possibly wrapped.
        head: computes the model's logits from its last hidden states.
        batch: of a task that predicts tokens.
        positions: mask of the positions with a label. *Shape:* (batch, tokens), bool
        request: the signals to compute.

    Returns:
        Signals whose `logits` are a `ChunkedLogits` over the positions with a label.
    """
    with _recording(request.attentions) as attentions:
        hidden_states = states(model, batch) if request.hidden else ()
        last_state = hidden_states[-1] if request.hidden else head.last_state(model, batch)
    signals: Signals = {"logits": ChunkedLogits(last_state[positions], head), "hidden_states": hidden_states}
    return signals | ({"attentions": attentions} if request.attentions else {})


def _recording(attentions: bool) -> AbstractContextManager[Any]:
    return recorded_attentions() if attentions else nullcontext()
