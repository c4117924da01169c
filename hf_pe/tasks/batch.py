"""Defines batches: which of their entries are inputs of a model, and which positions of its outputs count."""

import math
from typing import Any

import torch
from transformers import PreTrainedModel

Batch = dict[str, torch.Tensor]


ROW = "teacher_row"
"""Column of the training rows, and entry of a batch: the index of the row, by which cached outputs are looked up."""


POSSIBLE = "possible"
"""Entry of a batch: which tokens an answer may begin or end with."""


NOT_INPUTS = ("labels", ROW, POSSIBLE)


BEFORE_PATCHES = 5
"""Most class and register tokens that a sequence may have before its image patches."""


def model_inputs(batch: Batch) -> Batch:
    """Return the batch without the entries that only losses and metrics need."""
    return {key: value for key, value in batch.items() if key not in NOT_INPUTS}


def label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy over the labels other than -100; 0, with gradients of 0, if all labels are -100.

    Args:
        logits: *Shape:* (..., classes)
        labels: -100 where they do not count. *Shape:* (...)
    """
    flat = labels.flatten()
    total = torch.nn.functional.cross_entropy(logits.flatten(0, -2).float(), flat, reduction="sum")
    return total / (flat != -100).sum().clamp_min(1)


def token_label_signals(model: PreTrainedModel, batch: Batch, *, hidden: bool) -> dict[str, Any]:
    """Return the signals of a model that chooses a class for each token of a text.

    Args:
        model: whose outputs have `logits`.
        batch: with the labels of the tokens, -100 where they do not count. *Shape:* (batch, tokens)
        hidden: whether hidden states are needed too.

    Returns:
        Logits [batch, tokens, classes], the loss on the labels, a mask of the tokens with a label, and hidden states.
    """
    out = model(**model_inputs(batch), output_hidden_states=hidden)
    labels = batch["labels"]
    signals = {"logits": out.logits, "loss": label_loss(out.logits, labels), "mask": labels != -100}
    return signals | ({"hidden_states": out.hidden_states} if hidden else {})


def on_device(model: PreTrainedModel, batch: Batch) -> Batch:
    """Return the batch on the device of a model.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> tiny = BertConfig(hidden_size=8, num_attention_heads=2, intermediate_size=8, num_hidden_layers=1)
        >>> on_device(BertModel(tiny), {"input_ids": torch.tensor([[1, 2]])})["input_ids"].device
        device(type='cpu')
    """
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def as_read_by(model: PreTrainedModel, batch: Batch) -> Batch:
    """Return the model's inputs in a batch on its device; images and recordings also in its dtype."""
    return {
        key: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
        for key, value in model_inputs(batch).items()
    }


def counted_rows(hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the hidden states [tokens, width] of the positions that are not padding.

    Args:
        hidden: hidden states [batch, ..., width].
        mask: attention mask. It is ignored where its shape is not that of the positions, as for an encoder's mask
            beside a decoder's hidden states.
    """
    if mask is not None and hidden.shape[:-1] == mask.shape:
        return hidden[mask.bool()]
    return hidden.flatten(0, -2)


def as_map(hidden: torch.Tensor) -> torch.Tensor | None:
    """Return hidden states as a feature map [batch, channels, height, width]; None if they are no feature map.

    Feature maps with the channels last are recognized by their height and width being equal. Of a sequence of tokens
    the last ones that fill a square are used, because class and register tokens come before the patches.
    """
    if hidden.ndim == 4:
        return hidden.movedim(-1, 1) if hidden.shape[1] == hidden.shape[2] != hidden.shape[3] else hidden
    if hidden.ndim != 3:
        return None
    side = math.isqrt(hidden.shape[1])
    prefix = hidden.shape[1] - side**2
    return hidden[:, prefix:].mT.reshape(len(hidden), -1, side, side) if prefix <= BEFORE_PATCHES else None
