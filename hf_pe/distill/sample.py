"""Provides some rows for checks before training: of signals, of layers, and of labels."""

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_pe.errors import UsageError
from hf_pe.tasks import Batch, TaskData, as_read_by, on_device

SAMPLE_ROWS = 16
"""Number of calibration rows on which hidden states are compared."""


def sample_batch(model: PreTrainedModel, data: TaskData) -> Batch:
    """Return a batch of some calibration rows on the model's device."""
    rows = data.calibration.select(range(min(SAMPLE_ROWS, len(data.calibration))))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # collators that mask tokens mask the same ones in a resumed run
        (batch,) = data.batches(rows, SAMPLE_ROWS)
    return on_device(model, batch) | as_read_by(model, batch)


def require_targets(data: TaskData) -> None:
    """Refuse training rows whose labels are all -100.

    Raises:
        UsageError: all labels are -100.
    """
    if "labels" in data.train.column_names and not any(
        np.any(np.asarray(labels) != -100) for labels in data.train["labels"]
    ):
        raise UsageError(
            f"distil: no training row has a target (all {len(data.train)} have only labels of -100). "
            "Check data.max_length, and the code that masks labels."
        )
