"""Hold the modules that sentence-transformers applies after a model: pooling, dense layers, normalization."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_pe.errors import UsageError

MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Older settings, one flag for each way to pool, and how newer settings name it."""


@dataclass(frozen=True)
class SentenceModules:
    """Hold how sentence-transformers prepares a text before the model and computes an embedding after it.

    Attributes:
        pooling: "mean" or "cls".
        head: Dense layers and normalization after pooling, in order; None where they do not change any cosine.
        prompt: Text that precedes every text.
        lowercase: Whether texts are made lower case first, whatever the tokenizer does.
        max_tokens: Length to which texts are truncated; None without a limit of its own.
        warnings: Sentences about prompts that are not used.
        sha256: Hash of all files that decide this.
    """

    pooling: str = "mean"
    head: nn.Sequential | None = None
    prompt: str = ""
    lowercase: bool = False
    max_tokens: int | None = None
    warnings: tuple[str, ...] = ()
    sha256: str = ""

    def text(self, text: Any) -> str:
        """Return the text that the tokenizer reads: with the prompt, and in lower case where that is set."""
        prompted = f"{self.prompt}{text}"
        return prompted.lower() if self.lowercase else prompted

    def apply_head(self, pooled: torch.Tensor) -> torch.Tensor:
        """Apply the dense layers to pooled embeddings of shape (batch, width).

        Raises:
            UsageError: The first dense layer reads another width.
        """
        if self.head is None:
            return pooled
        reads = next(module.linear.in_features for module in self.head if isinstance(module, Dense))
        if pooled.shape[-1] != reads:
            raise UsageError(other_width("The dense layer behind the model", reads, pooled.shape[-1]))
        embeddings: torch.Tensor = self.head.to(pooled.device)(pooled.float())
        return embeddings


class Dense(nn.Module):
    """Apply a linear layer and an activation, as sentence-transformers' `Dense` does; the weights are not trained."""

    def __init__(self, settings: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        inputs, outputs = int(settings["in_features"]), int(settings["out_features"])
        self.linear = nn.Linear(inputs, outputs, bias=settings.get("bias", True))
        self.activation = _activation(settings.get("activation_function"))
        if settings.get("use_residual") and inputs != outputs:
            self.residual = nn.Linear(inputs, outputs, bias=False)
        self.has_residual = bool(settings.get("use_residual"))
        self.load_state_dict(weights)
        self.requires_grad_(False)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Map embeddings of shape (batch, in_features) to (batch, out_features)."""
        outputs: torch.Tensor = self.activation(self.linear(embeddings))
        if self.has_residual:
            outputs = outputs + (self.residual(embeddings) if hasattr(self, "residual") else embeddings)
        return outputs


class Normalize(nn.Module):
    """Scale each embedding to length 1, as sentence-transformers' `Normalize` does."""

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the embeddings, of shape (batch, width), scaled to length 1."""
        return nn.functional.normalize(embeddings, dim=-1)


def other_width(layer: str, reads: int, width: int) -> str:
    """Return the message that a module after the model reads another embedding width."""
    return (
        f"{layer} reads embeddings of {reads} values, and the model would give it {width}. Leave the hidden width as "
        "it is: no `hidden` in keep or axes, no backbone of another width."
    )


def _activation(path: str | None) -> nn.Module:
    """Return the activation that a class path of torch names; without one, tanh."""
    kind: Any = nn.Tanh if path is None else getattr(nn, path.rpartition(".")[2], None)
    if path is not None and not path.startswith("torch.nn."):
        kind = None
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise UsageError(f"A dense layer has the activation {path}; expected a class of torch.nn.")
    return kind()
