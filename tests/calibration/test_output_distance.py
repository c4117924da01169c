"""How many rows are asked."""

from types import SimpleNamespace

import pytest
import torch

from hf_pe.calibration import distance, rows_within
from hf_pe.errors import NotFiniteError


@pytest.mark.parametrize(("row", "count"), [(512, 8), (20, 64), (8192, 2), (0, 64)])
def test_long_rows_are_fewer(row, count):
    inputs = {"input_ids": [1] * row} if row else {"pixel_values": [[0.0]]}
    assert rows_within(SimpleNamespace(train=[inputs]), 4096) == count


@pytest.mark.parametrize("signal", ["logits", "embeddings", "loss"])
def test_outputs_that_are_no_numbers_are_infinitely_far(signal):
    finite, broken = torch.zeros(2, 4), torch.full((2, 4), torch.nan)
    assert distance((signal, broken), (signal, finite)) == torch.inf
    with pytest.raises(NotFiniteError, match="original's"):
        distance((signal, finite), (signal, broken))


def test_classes_that_the_original_masks_take_no_part():
    masked = torch.tensor([[0.0, 0.0, -torch.inf]]).log_softmax(-1)
    assert distance(("logits", masked), ("logits", masked)) == 0
