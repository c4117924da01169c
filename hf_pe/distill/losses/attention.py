"""Losses on attention: probabilities, and relations between queries, keys and values."""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from hf_pe.distill.attention import Attention
from hf_pe.distill.losses.masked_mean import masked_mean


def attention(student: Sequence[Attention], teacher: Sequence[Attention], mask: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of where each token looks, mean over tokens, heads and layers.

    Wang et al. 2020, arXiv:2002.10957, section 3.1, for pairs of layers in place of the last one. Where the numbers of
    heads differ the distributions are means over heads.

    Args:
        student, teacher: one for each pair of layers.
        mask: tokens that count, [batch, tokens].
    """
    terms = []
    for here, there in zip(student, teacher, strict=True):
        one, other = here.weights.float(), there.weights.float()
        if one.shape[1] != other.shape[1]:
            one, other = one.mean(1, keepdim=True), other.mean(1, keepdim=True)
        terms.append(masked_mean(_divergence(other, one.clamp_min(1e-30).log()).mean(1), mask))
    return torch.stack(terms).mean()


def relations(student: Attention, teacher: Attention, mask: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of softmax(A A^T / sqrt(d)), the sum over A the queries, the keys and the values.

    Wang et al. 2020, arXiv:2012.15828, section 3.1. Heads are joined and split into as many relation heads as both
    widths allow, so that neither the width nor the number of heads need be equal. A token relates to those that may see
    it or that it may see: not to padding, nor to another sequence packed beside it.

    Args:
        student, teacher: of one layer each.
        mask: tokens that count, [batch, tokens].
    """
    near = mask.bool()[:, None, None, :] & mask.bool()[:, None, :, None]
    if teacher.allowed is not None:
        near = near & (teacher.allowed | teacher.allowed.transpose(2, 3))
    near = near | torch.eye(near.shape[-1], dtype=torch.bool, device=near.device)
    terms = []
    for one, other in zip(student[:3], teacher[:3], strict=True):
        heads = math.gcd(one.shape[1] * one.shape[3], other.shape[1] * other.shape[3], other.shape[1])
        here, there = (functional.log_softmax(_related(x, heads, near), -1) for x in (one, other))
        terms.append(masked_mean(_divergence(there.exp(), here).mean(1), mask))
    return torch.stack(terms).sum()


def _related(x: torch.Tensor, heads: int, near: torch.Tensor) -> torch.Tensor:
    """Scaled products of tokens with each other, [batch, heads, tokens, tokens]."""
    rows, _, tokens, _ = x.shape
    x = x.float().transpose(1, 2).reshape(rows, tokens, heads, -1).transpose(1, 2)
    scores: torch.Tensor = x @ x.transpose(2, 3) / x.shape[-1] ** 0.5
    return scores.masked_fill(~near, -1e30)


def _divergence(wanted: torch.Tensor, logs: torch.Tensor) -> torch.Tensor:
    """KL of probabilities from log-probabilities, [..., classes] to [...]; rounding below zero is cut off."""
    return (torch.xlogy(wanted, wanted) - wanted * logs.clamp_min(-1e4)).sum(-1).clamp_min(0)
