"""Orders training rows so that batches have rows of similar length, which need little padding, in random order."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

BATCHES_PER_GROUP = 50
"""Number of batches whose rows are sorted by length together: more save padding, fewer make batches more random."""
LEAST_GROUPS = 4
"""Fewest groups that the rows are divided into."""


class SimilarLengthSampler(Sampler[int]):
    """Draw all rows once an epoch so that rows of a batch have similar lengths and batches follow in random order.

    `LengthGroupedSampler` of transformers sorts groups of 50 batches by length and keeps them sorted: within a group
    the lengths fall step by step and jump up at its end. If classes differ in length, a model that is trained in this
    order forgets one class while it is trained on another. This sampler shuffles the batches over the whole epoch. Rows
    that do not fill a batch are drawn at random and come last, so that batches begin at multiples of their size.

    The order depends on `seed` and the epoch alone: it is the same in all processes and in a resumed run.

    Args:
        lengths: of all rows.
        batch_size: number of rows that all processes together read for one batch.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int = 0) -> None:
        self.lengths = torch.tensor(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that determines the order; the data loader calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of all rows."""
        own_seed = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1)
        generator = torch.Generator().manual_seed(int(own_seed[0]))
        rows = torch.randperm(len(self), generator=generator)
        batches = len(rows) // self.batch_size
        full, rest = rows[: batches * self.batch_size], rows[batches * self.batch_size :]
        group_size = self.batch_size * min(BATCHES_PER_GROUP, max(batches // LEAST_GROUPS, 1))
        drawn = [full[start : start + group_size] for start in range(0, len(full), group_size)]
        groups = [group[self.lengths[group].argsort(stable=True)] for group in drawn]
        order = torch.randperm(batches, generator=generator)
        grouped = torch.cat(groups).view(batches, self.batch_size)[order].flatten() if batches else full
        yield from torch.cat([grouped, rest]).tolist()
