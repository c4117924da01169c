"""How many rows are asked."""

from types import SimpleNamespace

import pytest

from hf_pe.calibration import rows_within


@pytest.mark.parametrize(("row", "count"), [(512, 8), (20, 64), (8192, 2), (0, 64)])
def test_long_rows_are_fewer(row, count):
    inputs = {"input_ids": [1] * row} if row else {"pixel_values": [[0.0]]}
    assert rows_within(SimpleNamespace(train=[inputs]), 4096) == count
