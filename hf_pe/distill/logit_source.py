"""Where logits are read from: whole ones, and those that a head makes a chunk of positions at a time.

The likeliest classes of a cache, `hf_pe.distill.losses.logits.TopKLogits`, are a third source.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from hf_pe.distill.losses.logits import Logits
from hf_pe.tasks import Head


class LogitSource(Protocol):
    """Logits at the positions that count, read a slice of these positions at a time."""

    def part(self, positions: slice) -> Logits:
        """Return the logits of a slice of the positions. *Shape:* (positions, classes)"""


@dataclass(frozen=True)
class WholeLogits:
    """Logits that are held in memory.

    Attributes:
        values: *Shape:* (positions, classes)
    """

    values: torch.Tensor

    def part(self, positions: slice) -> torch.Tensor:
        """Return the logits of a slice of the positions. *Shape:* (positions, classes)"""
        return self.values[positions]


@dataclass(frozen=True)
class ChunkedLogits:
    """Logits that are made when they are asked for: a vocabulary of 128,000 never stands in memory as a whole.

    Attributes:
        states: what the head reads. *Shape:* (positions, width)
        head: from hidden states to logits.
    """

    states: torch.Tensor
    head: Head

    def part(self, positions: slice) -> torch.Tensor:
        """Return the logits of a slice of the positions. *Shape:* (positions, classes)"""
        return self.head(self.states[positions])
