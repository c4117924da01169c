"""Computes losses over a large vocabulary without holding all logits.

The logits of a few tokens at a time are computed, compared and turned into gradients at once. For a sequence of 2,048
tokens and a vocabulary of 128,000, the logits of student and teacher and their gradient take 3 GB in float32; those of
a chunk take a hundredth of that.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from hf_pe.distill.logit_source import ChunkedLogits, LogitSource
from hf_pe.tasks import TOKENS

Terms = Callable[[torch.Tensor, Any, slice], torch.Tensor]
"""Returns sums over tokens [terms] for the student's logits [tokens, vocabulary], the teacher's logits and the slice
of positions that they belong to."""


def chunked(
    terms: Terms,
    weights: Sequence[float],
    student: ChunkedLogits,
    teacher: LogitSource | None,
    tokens: int = TOKENS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted sum of loss terms, and the terms without gradients.

    The forward pass computes each chunk's logits, compares them, computes the gradients of the hidden states and of the
    head's parameters, and frees the logits. The backward pass multiplies the stored gradients. They are summed in
    float32.

    Args:
        terms: computes the terms of one chunk.
        weights: of each term.
        student: hidden states at the positions that count, and the head.
        teacher: logits at the same positions, without gradients; None if the terms need no teacher.
        tokens: number of tokens per chunk.

    Returns:
        The sum, *Shape:* (), and the terms, *Shape:* (terms,)
    """
    takes_gradients = torch.is_grad_enabled()
    apply: Any = _Chunked.apply
    parameters = student.head.trained()
    total, values = apply(
        terms, tuple(weights), student.head, teacher, tokens, takes_gradients, student.states, *parameters
    )
    return total, values


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        terms: Terms,
        weights: tuple[float, ...],
        head: Callable[[torch.Tensor], torch.Tensor],
        teacher: LogitSource | None,
        tokens: int,
        takes_gradients: bool,
        states: torch.Tensor,
        *parameters: nn.Parameter,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weight = torch.tensor(weights, device=states.device)
        values = torch.zeros(len(weights), device=states.device)
        state_gradients = torch.zeros_like(states) if takes_gradients else None
        sums = [torch.zeros_like(p, dtype=torch.float32) for p in parameters] if takes_gradients else []
        for start in range(0, len(states), tokens):
            positions = slice(start, min(start + tokens, len(states)))
            with torch.no_grad():
                target = None if teacher is None else teacher.part(positions)
            with torch.set_grad_enabled(takes_gradients):
                chunk = states[positions].detach().requires_grad_(takes_gradients)
                chunk_values = terms(head(chunk), target, positions)
                chunk_sum = (chunk_values * weight).sum()
            values += chunk_values.detach()
            if state_gradients is not None:
                state_gradient, *gradients = torch.autograd.grad(chunk_sum, [chunk, *parameters])
                state_gradients[positions] = state_gradient
                for total, gradient in zip(sums, gradients, strict=True):
                    total += gradient
        context.mark_non_differentiable(values)
        context.save_for_backward(*([state_gradients] if state_gradients is not None else []), *sums)
        context.dtypes = [p.dtype for p in parameters]
        return (values * weight).sum(), values

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        state_gradients, *sums = context.saved_tensors
        factor = gradients[0]
        parts = [(total * factor).to(dtype) for total, dtype in zip(sums, context.dtypes, strict=True)]
        return (*[None] * 6, state_gradients * factor.to(state_gradients), *parts)
