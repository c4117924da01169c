"""Defines sources of logits that can be read a slice of positions at a time.

There are three: logits in memory (`WholeLogits`), logits that a head computes from hidden states when they are read
(`ChunkedLogits`), and the most likely classes in a cache (`hf_pe.distill.losses.logits.TopKLogits`).
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from hf_pe.distill.losses.logits import Logits
from hf_pe.tasks import Head


class LogitSource(Protocol):
    """Provides the logits of the positions with a label, a slice of these positions at a time."""

    def part(self, positions: slice) -> Logits:
        """Return the logits of a slice of the positions. *Shape:* (positions, classes)."""


@dataclass(frozen=True)
class WholeLogits:
    """Holds all logits in memory.

    Attributes:
        values: *Shape:* (positions, classes)
    """

    values: torch.Tensor

    def part(self, positions: slice) -> torch.Tensor:
        """Return the logits of a slice of the positions. *Shape:* (positions, classes)."""
        return self.values[positions]


@dataclass(frozen=True)
class ChunkedLogits:
    """Computes logits when they are read, so that those over a large vocabulary are never all in memory.

    Attributes:
        states: the head's inputs. *Shape:* (positions, width)
        head: computes logits from hidden states.
    """

    states: torch.Tensor
    head: Head

    def part(self, positions: slice) -> torch.Tensor:
        """Return the logits of a slice of the positions. *Shape:* (positions, classes)."""
        return self.head(self.states[positions])
