"""Record a model's attention: queries, keys, values and attention weights of every layer.

transformers lets an attention function be registered under a name; ours computes what the plain one does and remembers
it. Whether a model's answers stay the same under it is tried before it is used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

NAME = "hf_pe_watched"
BLOCKED = -1e4
"""What a mask adds is below this where nothing may be looked at."""


class Attention(NamedTuple):
    """Of one layer.

    Attributes:
        query, key, value: [batch, heads, tokens, head size], rotated where the model does that; key and value may have
            fewer heads.
        weights: where each token looked, [batch, heads, tokens, tokens]; rows add up to 1, or less beside a sink.
        allowed: where it might have looked, [batch, 1, tokens, tokens]; None: everywhere.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    weights: torch.Tensor
    allowed: torch.Tensor | None


_recorded: ContextVar[list[Attention] | None] = ContextVar("recorded", default=None)


@contextmanager
def watchable(*models: PreTrainedModel) -> Iterator[None]:
    """Let the models attend through our function, and as before afterwards."""
    before = [model.config._attn_implementation for model in models]
    try:
        for model in models:
            model.set_attn_implementation(NAME)
        yield
    finally:
        for model, was in zip(models, before, strict=True):
            model.set_attn_implementation(was)


@contextmanager
def watched() -> Iterator[list[Attention]]:
    """Yield a list that gets an entry for each attention that runs meanwhile in a watchable model."""
    attentions: list[Attention] = []
    token = _recorded.set(attentions)
    try:
        yield attentions
    finally:
        _recorded.reset(token)


def _attend(  # noqa: PLR0913  transformers calls it with these
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    position_bias: torch.Tensor | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(Q K^T / sqrt(d)) V with all that models add to it: caps, biases, sinks, fewer heads of keys."""
    times = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(times, 1).transpose(2, 3)
    scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[2]]
    if s_aux is not None:
        sink = s_aux.reshape(1, -1, 1, 1).expand(len(query), -1, query.shape[2], 1)
        scores = torch.cat([scores, sink.to(scores.dtype)], -1)
    weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)[..., : key.shape[2]]
    attentions = _recorded.get()
    if attentions is not None:
        allowed = None if attention_mask is None else attention_mask[..., : key.shape[2]] > BLOCKED
        attentions.append(Attention(query, key, value, weights, allowed))
    mixed = functional.dropout(weights, dropout, module.training) @ value.repeat_interleave(times, 1)
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, eager_mask)
