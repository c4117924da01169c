"""Computes a language model's logits from its hidden states, a few tokens at a time.

For a sequence of 2,048 tokens and a vocabulary of 262,000 the logits take 2 GB in float32, and their log-probabilities
as much again. Losses and metrics therefore never hold them all. `Head` is what lies between the last hidden state and
the logits: the output embedding, a factor and a soft cap.
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
"""Smallest vocabulary whose logits are computed a few tokens at a time."""
TOKENS = 128
"""Number of tokens whose logits are held at a time."""
PROBED = 8
"""Number of tokens on which a head is compared with the model's own logits."""
CLOSE = 1e-4
"""Largest difference from the model's own logits, relative to the largest of these, at which a head is accepted."""
SOFTCAPS = ("final_logit_softcapping", "final_logit_softcap", "logits_soft_cap")
"""Names of the config fields that hold the soft cap of the logits."""


@dataclass(frozen=True)
class Head:
    """Computes logits from the last hidden state: the output embedding, then a factor, then a soft cap.

    Attributes:
        module: the output embedding, tied or not, with or without a bias or adapters.
        scale: factor of its output (Cohere, Granite).
        softcap: c in c tanh(logits / c); None if there is no soft cap (Gemma 2, arXiv:2408.00118, section 2).
        body: the module whose first output is the input of `module`.
    """

    module: nn.Module
    scale: float = 1.0
    softcap: float | None = None
    body: nn.Module | None = None

    @classmethod
    def of(cls, model: Any, batch: Batch) -> "Head | None":
        """Return the head of `model`; None if its logits are computed in another way.

        The factor is fitted, and the head compared with the model's own logits, on a few tokens of `batch`.

        Args:
            model: may have adapters.
            batch: inputs of the model.
        """
        plain: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        module = plain.get_output_embeddings()
        if not isinstance(module, nn.Module) or not keeps_logits(plain):
            return None
        batch = few_tokens(batch)
        outputs: list[torch.Tensor] = []
        handle = module.register_forward_hook(lambda m, args, output: outputs.append(output))
        try:
            with torch.no_grad():
                logits = plain(**model_inputs(batch), logits_to_keep=PROBED, **no_cache(plain)).logits.float()
        finally:
            handle.remove()
        if len(outputs) != 1 or outputs[0].shape != logits.shape:
            return None
        raw = outputs[0].float()
        config = plain.config.get_text_config()
        cap = next((c for c in (getattr(config, name, None) for name in SOFTCAPS) if c), None)
        # undo the cap, then fit the factor by least squares
        uncapped = logits if cap is None else cap * torch.atanh((logits / cap).clamp(-0.999999, 0.999999))
        scale = float((raw * uncapped).sum() / raw.square().sum().clamp_min(1e-30))
        head = cls(module, 1.0 if abs(scale - 1) < CLOSE else scale, cap, plain.base_model)
        with torch.no_grad():
            last = [states(plain, batch)[-1], head.last_state(plain, batch)]
            recomputed = [head(state[:, -PROBED:]).float() for state in last if state.ndim == logits.ndim]
        matches = [(each - logits).abs().max() <= CLOSE * logits.abs().max() for each in recomputed]
        return head if len(matches) == 2 and all(matches) else None

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits [..., vocabulary] of hidden states [..., width]."""
        logits: torch.Tensor = self.module(hidden)
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters of the output embedding that require a gradient."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def last_state(self, model: Any, batch: Batch) -> torch.Tensor:
        """Return the hidden states [batch, tokens, width] that the head reads, by a forward pass of `model`.

        `model` itself is called, so that wrappers (adapters, DDP) take part; it computes the logits of one token only.
        """
        assert self.body is not None
        outputs: list[torch.Tensor] = []
        handle = self.body.register_forward_hook(lambda m, args, output: outputs.append(output[0]))
        try:
            model(**model_inputs(batch), logits_to_keep=1, use_cache=False)
        finally:
            handle.remove()
        return outputs[-1]

    def parts(self, hidden: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield slices of at most `TOKENS` tokens, each with the logits [tokens, vocabulary] of its hidden states.

        Args:
            hidden: hidden states of all tokens. *Shape:* (tokens, width)
        """
        for start in range(0, len(hidden), TOKENS):
            tokens = slice(start, min(start + TOKENS, len(hidden)))
            yield tokens, self(hidden[tokens])


def keeps_logits(model: Any) -> bool:
    """Return whether a model's forward accepts `logits_to_keep`, to compute the logits of its last tokens alone."""
    return "logits_to_keep" in inspect.signature(type(model).forward).parameters


def states(model: Any, batch: Batch) -> tuple[torch.Tensor, ...]:
    """Return the hidden states [batch, tokens, width] of all layers; the last of them is the head's input.

    `model` itself is called, so that wrappers (adapters, DDP) take part; it computes the logits of one token only.
    """
    hidden_states: tuple[torch.Tensor, ...] = model(
        **model_inputs(batch), output_hidden_states=True, logits_to_keep=1, use_cache=False
    ).hidden_states
    return hidden_states


def few_tokens(batch: Batch, rows: int = 1, tokens: int = PROBED) -> Batch:
    """Return the first tokens of the first rows of a batch with a label for each token; other batches are unchanged.

    The outputs for the smaller batch have the same widths and types, and need no memory for a large vocabulary.
    """
    labels, id_shapes = batch.get("labels"), [batch[n].shape for n in ("input_ids", "decoder_input_ids") if n in batch]
    by_token = all(v.ndim == 2 and not v.is_floating_point() for k, v in batch.items() if k != ROW)
    if not by_token or labels is None or labels.shape not in id_shapes:
        return batch
    return {key: value[:rows] if key == ROW else value[:rows, :tokens] for key, value in batch.items()}
