"""From hidden states to a language model's logits, a few tokens at a time: those of a large vocabulary are never whole.

Of a sequence of 2,048 tokens and 262,000 words the logits take 2 GB in float32, its log-probabilities as much again.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from hf_pe.dummies.outputs import no_cache
from hf_pe.tasks.batch import ROW, Batch, model_inputs

LARGE = 4096
"""From so many words on a vocabulary's logits are never held whole."""
TOKENS = 128
"""Tokens whose logits are held at a time."""
PROBED = 8
"""Tokens on which a head is compared with the model's own logits."""
CLOSE = 1e-4
"""How far a head may be from the model's own logits, over their largest, to count as the same."""
SOFTCAPS = ("final_logit_softcapping", "final_logit_softcap", "logits_soft_cap")
"""Fields of configs that cap logits."""


@dataclass(frozen=True)
class Head:
    """From the last hidden state to logits: the output map, then a factor, then a soft cap.

    Attributes:
        module: the output map, tied or not, with or without a bias or adapters.
        scale: what its output is multiplied by (Cohere, Granite).
        softcap: c in c tanh(logits / c), None without (Gemma 2, arXiv:2408.00118, section 2).
        body: the module whose first output `module` reads.
    """

    module: nn.Module
    scale: float = 1.0
    softcap: float | None = None
    body: nn.Module | None = None

    @classmethod
    def of(cls, model: Any, batch: Batch) -> "Head | None":
        """The head of `model`, found out on a few tokens of `batch` and compared with its logits; None where it does
        something else.

        Args:
            model: may have adapters.
            batch: what it is called with; is not kept.
        """
        plain: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        module = plain.get_output_embeddings()
        if not isinstance(module, nn.Module) or not keeps_logits(plain):
            return None
        batch = few_tokens(batch)
        seen: list[torch.Tensor] = []
        handle = module.register_forward_hook(lambda m, args, output: seen.append(output))
        try:
            with torch.no_grad():
                logits = plain(**model_inputs(batch), logits_to_keep=PROBED, **no_cache(plain)).logits.float()
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
        head = cls(module, 1.0 if abs(scale - 1) < CLOSE else scale, cap, plain.base_model)
        with torch.no_grad():
            last = [states(plain, batch)[-1], head.last_state(plain, batch)]
            again = [head(state[:, -PROBED:]).float() for state in last if state.ndim == logits.ndim]
        near = [(each - logits).abs().max() <= CLOSE * logits.abs().max() for each in again]
        return head if len(near) == 2 and all(near) else None

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [..., vocabulary] of hidden states [..., width]."""
        logits: torch.Tensor = self.module(hidden)
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def trained(self) -> list[nn.Parameter]:
        """Its parameters that want a gradient."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def last_state(self, model: Any, batch: Batch) -> torch.Tensor:
        """Return the hidden states [batch, tokens, width] that the head reads, by a forward pass of `model`.

        Through the model's own forward, so that wrappers (adapters, DDP) have their part; the head sees one token.
        """
        assert self.body is not None
        seen: list[torch.Tensor] = []
        handle = self.body.register_forward_hook(lambda m, args, output: seen.append(output[0]))
        try:
            model(**model_inputs(batch), logits_to_keep=1, use_cache=False)
        finally:
            handle.remove()
        return seen[-1]

    def parts(self, hidden: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield logits [some tokens, vocabulary] of hidden states [tokens, width], and which tokens they are of."""
        for start in range(0, len(hidden), TOKENS):
            place = slice(start, min(start + TOKENS, len(hidden)))
            yield place, self(hidden[place])


def keeps_logits(model: Any) -> bool:
    """Whether a model can be asked for the logits of its last tokens alone."""
    return "logits_to_keep" in inspect.signature(type(model).forward).parameters


def states(model: Any, batch: Batch) -> tuple[torch.Tensor, ...]:
    """Hidden states [batch, tokens, width] of all layers, the last as the head is given it; the head sees one token.

    Through the model's own forward, so that wrappers (adapters, DDP) have their part.
    """
    found: tuple[torch.Tensor, ...] = model(
        **model_inputs(batch), output_hidden_states=True, logits_to_keep=1, use_cache=False
    ).hidden_states
    return found


def few_tokens(batch: Batch, rows: int = 1, tokens: int = PROBED) -> Batch:
    """Return the first tokens of the first rows of a batch that has a label for each token; other batches as they are.

    What a model gives for such a batch has the same widths and kinds, and needs no memory for a large vocabulary.
    """
    labels, places = batch.get("labels"), [batch[n].shape for n in ("input_ids", "decoder_input_ids") if n in batch]
    by_token = all(v.ndim == 2 and not v.is_floating_point() for k, v in batch.items() if k != ROW)
    if not by_token or labels is None or labels.shape not in places:
        return batch
    return {key: value[:rows] if key == ROW else value[:rows, :tokens] for key, value in batch.items()}
