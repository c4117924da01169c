"""Losses over a large vocabulary that never hold its logits: a few tokens at a time they are made and turned into
gradients.

Of a sequence of 2,048 tokens and 128,000 words the logits of student and teacher and their gradient take 3 GB in
float32; a chunk of them takes a hundredth.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from hf_pe.instance import no_cache
from hf_pe.tasks import Batch, model_inputs

TOKENS = 128
"""In a chunk."""
CLOSE = 1e-4
"""How far a head may be from the model's own logits, over their largest, to count as the same."""

Terms = Callable[[torch.Tensor, Any, slice], torch.Tensor]
"""From logits [tokens, vocabulary] of the student, what the teacher gives for them, and a chunk's place: sums over its
tokens, [terms]."""


@dataclass(frozen=True)
class Head:
    """From the last hidden state to logits: the output map, then a factor, then a soft cap.

    Attributes:
        module: the output map, tied or not, with or without a bias or adapters.
        scale: what its output is multiplied by (Cohere, Granite).
        softcap: c in c tanh(logits / c), None without (Gemma 2, arXiv:2408.00118, section 2).
    """

    module: nn.Module
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: Any, batch: Batch) -> "Head | None":
        """The head of `model`, found out on `batch` and compared with its logits; None where it does something else.

        Args:
            model: may have adapters.
            batch: what it is called with; is not kept.
        """
        plain: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        module = plain.get_output_embeddings()
        keeps = "logits_to_keep" in inspect.signature(type(plain).forward).parameters
        if not isinstance(module, nn.Module) or not keeps:
            return None
        seen: list[torch.Tensor] = []
        handle = module.register_forward_hook(lambda m, args, output: seen.append(output))
        try:
            with torch.no_grad():
                logits = plain(**model_inputs(batch), **no_cache(plain)).logits.float()
        finally:
            handle.remove()
        if len(seen) != 1 or seen[0].shape != logits.shape:
            return None
        raw = seen[0].float()
        config = plain.config.get_text_config()
        cap = next((c for c in (getattr(config, name, None) for name in SOFTCAPS) if c), None)
        # where a cap is known what it was given is known too; the factor is the best one by least squares
        uncapped = logits if cap is None else cap * torch.atanh((logits / cap).clamp(-0.999999, 0.999999))
        scale = float((raw * uncapped).sum() / raw.square().sum().clamp_min(1e-30))
        head = cls(module, 1.0 if abs(scale - 1) < CLOSE else scale, cap)
        with torch.no_grad():
            again = head(states(plain, batch)[-1]).float()
        near = (again - logits).abs().max() <= CLOSE * logits.abs().max()
        return head if near else None

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [..., vocabulary] of hidden states [..., width]."""
        logits: torch.Tensor = self.module(hidden)
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def trained(self) -> list[nn.Parameter]:
        """Its parameters that want a gradient."""
        return [p for p in self.module.parameters() if p.requires_grad]


SOFTCAPS = ("final_logit_softcapping", "final_logit_softcap", "logits_soft_cap")
"""Fields of configs that cap logits."""


def states(model: Any, batch: Batch) -> tuple[torch.Tensor, ...]:
    """Hidden states [batch, tokens, width] of all layers, the last as the head is given it; the head sees one token.

    Through the model's own forward, so that wrappers (adapters, DDP) have their part.
    """
    found: tuple[torch.Tensor, ...] = model(
        **model_inputs(batch), output_hidden_states=True, logits_to_keep=1, use_cache=False
    ).hidden_states
    return found


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
