"""The order of training rows: batches of similar length, which need little padding, in random order."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

BATCHES_PER_GROUP = 50
"""Batches whose rows are sorted by length together: more save padding, fewer leave more to chance."""
LEAST_GROUPS = 4
"""Into which few rows are divided."""


class SimilarLengthSampler(Sampler[int]):
    """Draw all rows once an epoch so that rows of a batch have similar lengths and batches follow in random order.

    transformers' `LengthGroupedSampler` sorts groups of 50 batches by length and leaves them sorted: within a group the
    lengths fall step by step and jump up at its end. A model that is trained in this order forgets the classes that go
    with one length while it sees the other. The order of the batches is shuffled over the whole epoch instead. Rows
    that fill no batch are drawn at random and come last, so that batches begin where they should.

    The order depends on `seed` and the epoch alone: all processes draw the same one, and a resumed run goes on in it.

    Args:
        lengths: of all rows.
        batch_size: rows that one step of all processes reads at once.
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
        """Choose the order of this epoch; the data loader calls it."""
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
