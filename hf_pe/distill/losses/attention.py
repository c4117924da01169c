"""Losses on attention: probabilities, and relations between queries, keys and values."""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from hf_pe.distill.attention import Attention
from hf_pe.distill.losses.masked_mean import masked_mean


def attention(student: Sequence[Attention], teacher: Sequence[Attention], mask: torch.Tensor) -> torch.Tensor:
    """Return KL(teacher || student) of where each token looks, mean over tokens, heads and layers.

    Wang et al. 2020, arXiv:2002.10957, section 3.1, for pairs of layers in place of the last one. Where the numbers of
    heads differ the distributions are means over heads.

    Args:
        student, teacher: one for each pair of layers.
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
    """Return KL(teacher || student) of softmax(A A^T / sqrt(d)), summed over A the queries, the keys and the values.

    Wang et al. 2020, arXiv:2012.15828, section 3.1. Heads are joined and split into as many relation heads as both
    widths allow, so that neither the width nor the number of heads need be equal. A token relates to those that may see
    it or that it may see: not to padding, nor to another sequence packed beside it.

    Args:
        student, teacher: of one layer each.
        mask: tokens that count. *Shape:* (batch, tokens)

    Returns:
        *Shape:* ()

    Example:
        >>> narrow, wide = torch.ones(1, 2, 3, 4), torch.ones(1, 4, 3, 8)  # batch, heads, tokens, head size
        >>> layers = [Attention(state, state, state, torch.ones(1, 1, 3, 3), None) for state in (narrow, wide)]
        >>> relations(*layers, mask=torch.ones(1, 3))  # all tokens are alike in both
        tensor(0.)
    """
    near = mask.bool()[:, None, None, :] & mask.bool()[:, None, :, None]
    if teacher.allowed is not None:
        near = near & (teacher.allowed | teacher.allowed.transpose(2, 3))
    near = near | torch.eye(near.shape[-1], dtype=torch.bool, device=near.device)
    terms = []
    for states in zip(student[:3], teacher[:3], strict=True):
        widths = [state.shape[1] * state.shape[3] for state in states]
        heads = math.gcd(*widths, states[1].shape[1])
        own, target = (functional.log_softmax(_related(state, heads, near), -1) for state in states)
        terms.append(masked_mean(_divergence(target.exp(), own).mean(1), mask))
    return torch.stack(terms).sum()


def _related(x: torch.Tensor, heads: int, near: torch.Tensor) -> torch.Tensor:
    """Return scaled products of tokens with each other, [batch, heads, tokens, tokens]."""
    rows, _, tokens, _ = x.shape
    x = x.float().transpose(1, 2).reshape(rows, tokens, heads, -1).transpose(1, 2)
    scores: torch.Tensor = x @ x.transpose(2, 3) / x.shape[-1] ** 0.5
    return scores.masked_fill(~near, -1e30)


def _divergence(target: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """Return KL of probabilities from log-probabilities, [..., classes] to [...]; rounding below zero is cut off."""
    return (torch.xlogy(target, target) - target * log_probs.clamp_min(-1e4)).sum(-1).clamp_min(0)
