"""Records the queries, keys, values and attention weights of every layer of a model.

transformers allows an attention function to be registered under a name. Ours computes the same as the eager one and
records it. `checks.require_attention` verifies that a model's outputs do not change under it.
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
"""An attention mask adds less than this to the scores of positions that are masked."""


class Attention(NamedTuple):
    """Holds the attention of one layer.

    Attributes:
        query: after rotary embeddings, if the model has them. *Shape:* (batch, heads, tokens, head size)
        key: as `query`, possibly with fewer heads.
        value: possibly with fewer heads. *Shape:* (batch, heads, tokens, head size)
        weights: attention weights; rows add up to 1, or less if there is an attention sink.
            *Shape:* (batch, heads, tokens, tokens)
        allowed: which positions the mask leaves; None: all. *Shape:* (batch, 1, tokens, tokens)
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    weights: torch.Tensor
    allowed: torch.Tensor | None


_recorded: ContextVar[list[Attention] | None] = ContextVar("recorded", default=None)


@contextmanager
def recordable(*models: PreTrainedModel) -> Iterator[None]:
    """Let the models use the recording attention function inside the block."""
    implementations = [model.config._attn_implementation for model in models]
    try:
        for model in models:
            model.set_attn_implementation(NAME)
        yield
    finally:
        for model, implementation in zip(models, implementations, strict=True):
            model.set_attn_implementation(implementation)


@contextmanager
def recorded_attentions() -> Iterator[list[Attention]]:
    """Yield a list to which every attention layer that runs inside the block is added; see `recordable`."""
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
    """Return softmax(Q K^T / sqrt(d)) V, with the soft caps, biases, sinks and grouped keys that models have."""
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
    output = functional.dropout(weights, dropout, module.training) @ value.repeat_interleave(times, 1)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, eager_mask)
