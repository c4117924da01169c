"""What the objective asks of a teacher, whether it is a model or a cache."""

from typing import Protocol

import torch

from hf_pe.distill.losses.masked_mean import Signals
from hf_pe.distill.signals import SignalRequest
from hf_pe.tasks import Batch


class TeacherSource(Protocol):
    """Where the outputs of one teacher come from."""

    @property
    def weight(self) -> float:
        """How much this teacher counts beside the others; the weights need not add up to 1."""

    def to(self, device: torch.device) -> None:
        """Get ready to answer on `device`."""

    def signals(self, batch: Batch, request: SignalRequest) -> Signals:
        """Return the outputs for a batch, with whole logits or the likeliest classes of each position."""

    def chunked_signals(self, batch: Batch, positions: torch.Tensor, request: SignalRequest) -> Signals:
        """Return the outputs for a batch; `logits` is a `LogitSource` over the positions that count.

        Args:
            batch: of a task that predicts tokens.
            positions: which tokens count. *Shape:* (batch, tokens), bool
            request: what else is asked for.
        """
