"""The modules that sentence-transformers puts behind a model: pooling, dense layers, normalization."""

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
"""Older settings, one for each way to pool, and how newer ones name it."""


@dataclass(frozen=True)
class SentenceModules:
    """What follows the model, and what precedes the text.

    Attributes:
        pooling: "mean" or "cls".
        head: dense layers and normalisation behind pooling, in order; None where they change no cosine.
        prompt: text that is put before every text.
        lowercase: texts are made lower case first, whatever the tokenizer does.
        max_tokens: of a text, the rest is cut off; None without a limit of its own.
        warnings: sentences on prompts that are not used.
        sha256: of all files that decide this.
    """

    pooling: str = "mean"
    head: nn.Sequential | None = None
    prompt: str = ""
    lowercase: bool = False
    max_tokens: int | None = None
    warnings: tuple[str, ...] = ()
    sha256: str = ""

    def text(self, text: Any) -> str:
        """Return what the tokenizer is given of a text."""
        whole = f"{self.prompt}{text}"
        return whole.lower() if self.lowercase else whole

    def apply_head(self, pooled: torch.Tensor) -> torch.Tensor:
        """Return what the dense layers make of pooled embeddings [batch, width].

        Raises:
            UsageError: the first one reads another width.
        """
        if self.head is None:
            return pooled
        reads = next(module.linear.in_features for module in self.head if isinstance(module, Dense))
        if pooled.shape[-1] != reads:
            raise UsageError(other_width("The dense layer behind the model", reads, pooled.shape[-1]))
        found: torch.Tensor = self.head.to(pooled.device)(pooled.float())
        return found


class Dense(nn.Module):
    """A linear layer with an activation, as sentence-transformers' module of that name; its weights are not trained."""

    def __init__(self, settings: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        inputs, outputs = int(settings["in_features"]), int(settings["out_features"])
        self.linear = nn.Linear(inputs, outputs, bias=settings.get("bias", True))
        self.activation = _activation(settings.get("activation_function"))
        if settings.get("use_residual") and inputs != outputs:
            self.residual = nn.Linear(inputs, outputs, bias=False)
        self.adds = bool(settings.get("use_residual"))
        self.load_state_dict(weights)
        self.requires_grad_(False)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Map embeddings [batch, in_features] to [batch, out_features]."""
        found: torch.Tensor = self.activation(self.linear(embeddings))
        if self.adds:
            found = found + (self.residual(embeddings) if hasattr(self, "residual") else embeddings)
        return found


class Normalize(nn.Module):
    """Gives each embedding the length 1."""

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return embeddings [batch, width] of length 1."""
        return nn.functional.normalize(embeddings, dim=-1)


def other_width(layer: str, reads: int, width: int) -> str:
    """Return the message that a module behind the model needs another embedding width."""
    return (
        f"{layer} reads embeddings of {reads} values, and the model would give it {width}. Leave the hidden width as "
        "it is: no `hidden` in keep or axes, no backbone of another width."
    )


def _activation(path: str | None) -> nn.Module:
    """Return the activation that a class path of torch names; default: tanh."""
    kind: Any = nn.Tanh if path is None else getattr(nn, path.rpartition(".")[2], None)
    if path is not None and not path.startswith("torch.nn."):
        kind = None
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise UsageError(f"A dense layer has the activation {path}; expected a class of torch.nn.")
    return kind()
