"""What a model gives for a batch, with all that losses may look at: by one forward pass."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn

from hf_pe.distill.attention import watched
from hf_pe.distill.logit_source import ChunkedLogits
from hf_pe.distill.losses.masked_mean import Signals
from hf_pe.stitching import read_by
from hf_pe.tasks import Batch, Head, Task, states


class SignalRequest(NamedTuple):
    """Which signals a model is asked for.

    Attributes:
        task: says what a model gives for a batch.
        hidden: whether hidden states are among it.
        attentions: whether queries, keys, values and attention weights are among it.
    """

    task: Task
    hidden: bool = False
    attentions: bool = False


def whole_signals(model: Any, batch: Batch, request: SignalRequest, label_head: nn.Module | None = None) -> Signals:
    """Return a model's signals with whole logits.

    Args:
        model: student or teacher; wrapped perhaps.
        batch: as the task's collator makes it.
        request: what is asked for.
        label_head: a module of the model; the features that flow into it are among the signals.
    """
    with _watching(request.attentions) as attentions, read_by(label_head) as features:
        signals = dict(request.task.signals(model, batch, hidden=request.hidden))
    if request.attentions:
        signals["attentions"] = attentions
    if features:
        signals["features"] = features[-1]
    return signals


def chunked_signals(model: Any, head: Head, batch: Batch, positions: torch.Tensor, request: SignalRequest) -> Signals:
    """Return a model's signals whose logits are made in chunks.

    Args:
        model: student or teacher; wrapped perhaps.
        head: makes its logits from its last hidden states.
        batch: of a task that predicts tokens.
        positions: which tokens count. *Shape:* (batch, tokens), bool
        request: what is asked for.

    Returns:
        `logits` is a `ChunkedLogits` over the positions that count.
    """
    with _watching(request.attentions) as attentions:
        hidden_states = states(model, batch) if request.hidden else ()
        last_state = hidden_states[-1] if request.hidden else head.last_state(model, batch)
    signals: Signals = {"logits": ChunkedLogits(last_state[positions], head), "hidden_states": hidden_states}
    return signals | ({"attentions": attentions} if request.attentions else {})


def _watching(attentions: bool) -> AbstractContextManager[Any]:
    return watched() if attentions else nullcontext()
