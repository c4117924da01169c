"""Losses over a large vocabulary that never hold its logits: a few tokens at a time they are made and turned into
gradients.

Of a sequence of 2,048 tokens and 128,000 words the logits of student and teacher and their gradient take 3 GB in
float32; a chunk of them takes a hundredth.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from hf_pe.tasks import TOKENS, Head

Terms = Callable[[torch.Tensor, Any, slice], torch.Tensor]
"""From logits [tokens, vocabulary] of the student, what the teacher gives for them, and a chunk's place: sums over its
tokens, [terms]."""


def chunked(
    terms: Terms,
    weights: Sequence[float],
    student: tuple[torch.Tensor, Head],
    teacher: Callable[[slice], Any],
    tokens: int = TOKENS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted sum of loss terms, and the terms [terms] without gradients.

    Each chunk's logits are made, judged, turned into gradients of the hidden states and of the head's parameters, and
    forgotten, all in the forward pass; backward multiplies what is kept. Gradients add up in float32.

    Args:
        terms: of one chunk.
        weights: of each term.
        student: hidden states of the tokens that count, [tokens, width], and the head.
        teacher: gives the logits of a chunk; gets no gradient.
        tokens: in a chunk.
    """
    hidden, head = student
    wanted = torch.is_grad_enabled()
    apply: Any = _Chunked.apply
    found = apply(terms, tuple(weights), head, teacher, tokens, wanted, hidden, *head.trained())
    return found[0], found[1]


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        terms: Terms,
        weights: tuple[float, ...],
        head: Head,
        teacher: Callable[[slice], Any],
        tokens: int,
        wanted: bool,
        hidden: torch.Tensor,
        *parameters: nn.Parameter,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weight = torch.tensor(weights, device=hidden.device)
        found = torch.zeros(len(weights), device=hidden.device)
        by_hidden = torch.zeros_like(hidden) if wanted else None
        sums = [torch.zeros_like(p, dtype=torch.float32) for p in parameters] if wanted else []
        for start in range(0, len(hidden), tokens):
            place = slice(start, min(start + tokens, len(hidden)))
            with torch.no_grad():
                target = teacher(place)
            with torch.set_grad_enabled(wanted):
                part = hidden[place].detach().requires_grad_(wanted)
                values = terms(head(part), target, place)
                value = (values * weight).sum()
            found += values.detach()
            if by_hidden is not None:
                first, *others = torch.autograd.grad(value, [part, *parameters])
                by_hidden[place] = first
                for total, gradient in zip(sums, others, strict=True):
                    total += gradient
        context.mark_non_differentiable(found)
        context.save_for_backward(*([by_hidden] if by_hidden is not None else []), *sums)
        context.dtypes = [p.dtype for p in parameters]
        return (found * weight).sum(), found

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        by_hidden, *sums = context.saved_tensors
        factor = gradients[0]
        parts = [(total * factor).to(dtype) for total, dtype in zip(sums, context.dtypes, strict=True)]
        return (*[None] * 6, by_hidden * factor.to(by_hidden), *parts)
