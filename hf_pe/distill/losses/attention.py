"""Losses on attention: on attention weights, and on relations among queries, among keys and among values."""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from hf_pe.distill.attention import Attention
from hf_pe.distill.losses.masked_mean import masked_mean


def attention(student: Sequence[Attention], teacher: Sequence[Attention], mask: torch.Tensor) -> torch.Tensor:
    """Return KL(teacher || student) of the attention weights, averaged over tokens, heads and layers.

    Wang et al. 2020, arXiv:2002.10957, section 3.1, for pairs of layers instead of the last layer only. If the numbers
    of heads differ, the weights are averaged over heads first.

    Args:
        student: attention of one layer for each pair of layers.
        teacher: as `student`.
        mask: tokens that count. *Shape:* (batch, tokens)

    Returns:
        *Shape:* ()

    Example:
        >>> state = torch.zeros(1, 1, 2, 4)  # batch, heads, tokens, head size
        >>> even, first = torch.full((1, 1, 2, 2), 0.5), torch.tensor([1.0, 0.0]).expand(1, 1, 2, 2)
        >>> layers = [Attention(state, state, state, weights, allowed=None) for weights in (even, first)]
        >>> attention(layers[:1], layers[1:], mask=torch.ones(1, 2))  # ln(1 / 0.5)
        tensor(0.6931)
    """
    terms = []
    for layer, teacher_layer in zip(student, teacher, strict=True):
        weights, target = layer.weights.float(), teacher_layer.weights.float()
        if weights.shape[1] != target.shape[1]:
            weights, target = weights.mean(1, keepdim=True), target.mean(1, keepdim=True)
        terms.append(masked_mean(_divergence(target, weights.clamp_min(1e-30).log()).mean(1), mask))
    return torch.stack(terms).mean()


def relations(student: Attention, teacher: Attention, mask: torch.Tensor) -> torch.Tensor:
    """Return KL(teacher || student) of softmax(A A^T / sqrt(d)), summed over A = queries, keys and values.

    Wang et al. 2020, arXiv:2012.15828, section 3.1. Heads are joined and split into as many relation heads as both
    widths allow, so that neither the widths nor the numbers of heads have to be equal. Tokens are related if one may
    attend to the other: not padding, and not tokens of another sequence in the same row.

    Args:
        student: attention of one layer.
        teacher: attention of one layer.
        mask: tokens that count. *Shape:* (batch, tokens)

    Returns:
        *Shape:* ()

    Example:
        >>> narrow, wide = torch.ones(1, 2, 3, 4), torch.ones(1, 4, 3, 8)  # batch, heads, tokens, head size
        >>> layers = [Attention(state, state, state, torch.ones(1, 1, 3, 3), None) for state in (narrow, wide)]
        >>> relations(*layers, mask=torch.ones(1, 3))  # all tokens are alike in both
        tensor(0.)
    """
    related = mask.bool()[:, None, None, :] & mask.bool()[:, None, :, None]
    if teacher.allowed is not None:
        related = related & (teacher.allowed | teacher.allowed.transpose(2, 3))
    related = related | torch.eye(related.shape[-1], dtype=torch.bool, device=related.device)
    terms = []
    for states in zip(student[:3], teacher[:3], strict=True):
        widths = [state.shape[1] * state.shape[3] for state in states]
        heads = math.gcd(*widths, states[1].shape[1])
        own, target = (functional.log_softmax(_relations(state, heads, related), -1) for state in states)
        terms.append(masked_mean(_divergence(target.exp(), own).mean(1), mask))
    return torch.stack(terms).sum()


def _relations(x: torch.Tensor, heads: int, related: torch.Tensor) -> torch.Tensor:
    """Return the scaled dot products of all pairs of tokens, [batch, heads, tokens, tokens]."""
    rows, _, tokens, _ = x.shape
    x = x.float().transpose(1, 2).reshape(rows, tokens, heads, -1).transpose(1, 2)
    scores: torch.Tensor = x @ x.transpose(2, 3) / x.shape[-1] ** 0.5
    return scores.masked_fill(~related, -1e30)


def _divergence(target: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """Return the KL divergence [...] of probabilities from log-probabilities, both [..., classes]; never below 0."""
    return (torch.xlogy(target, target) - target * log_probs.clamp_min(-1e4)).sum(-1).clamp_min(0)
