"""Defines a teacher that is a model, which runs a forward pass for each batch."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from hf_pe.distill.losses.masked_mean import Signals
from hf_pe.distill.signals import SignalRequest, chunked_signals, whole_signals
from hf_pe.tasks import Batch, Head, as_read_by


@dataclass(frozen=True)
class LiveTeacher:
    """Computes the signals of a teacher by a forward pass of a model.

    Attributes:
        model: in evaluation mode, without gradients.
        weight: of this teacher among all teachers.
        head: computes the model's logits in chunks; None if all logits are computed at once.
        label_head: the model's linear layer to the labels, if a loss compares its inputs.
    """

    model: PreTrainedModel
    weight: float = 1.0
    head: Head | None = None
    label_head: nn.Module | None = None

    def to(self, device: torch.device) -> None:
        """Move the model, unless it is sharded, quantized or distributed by a device map."""
        if not (
            is_sharded(self.model)
            or getattr(self.model, "hf_device_map", None)
            or getattr(self.model, "is_quantized", False)
        ):
            self.model.to(device)  # type: ignore[arg-type]

    def signals(self, batch: Batch, request: SignalRequest) -> Signals:
        """Run a forward pass; images and recordings are converted to the teacher's dtype."""
        with torch.no_grad():
            return whole_signals(self.model, batch | as_read_by(self.model, batch), request, self.label_head)

    def chunked_signals(self, batch: Batch, positions: torch.Tensor, request: SignalRequest) -> Signals:
        """Run a forward pass up to the last hidden state."""
        assert self.head is not None, "`build` sets the head if logits are read in chunks"
        with torch.no_grad():
            return chunked_signals(self.model, self.head, batch, positions, request)


def is_sharded(model: nn.Module) -> bool:
    """Return whether a model's parameters are sharded over processes (FSDP2)."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
