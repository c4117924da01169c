"""Defines the interface of a teacher, whether it is a model or a cache file."""

from typing import Protocol

import torch

from hf_pe.distill.losses.masked_mean import Signals
from hf_pe.distill.signals import SignalRequest
from hf_pe.tasks import Batch


class TeacherSource(Protocol):
    """Provides the outputs of one teacher."""

    @property
    def weight(self) -> float:
        """The weight of this teacher among all teachers; the weights need not add up to 1."""

    def to(self, device: torch.device) -> None:
        """Prepare to compute outputs on `device`."""

    def signals(self, batch: Batch, request: SignalRequest) -> Signals:
        """Return the signals for a batch, with all logits or with the most likely classes of each position."""

    def chunked_signals(self, batch: Batch, positions: torch.Tensor, request: SignalRequest) -> Signals:
        """Return the signals for a batch; `logits` is a `LogitSource` over the positions with a label.

        Args:
            batch: of a task that predicts tokens.
            positions: mask of the positions with a label. *Shape:* (batch, tokens), bool
            request: names the other signals to compute.
        """
