"""Small images that can be told apart, as a fixture for all."""

import datasets
import pytest
import torch
from transformers import default_data_collator

from hf_pe.data import DataConfig, Examples
from hf_pe.tasks import ImageClassification, TaskData

NAMES = {0: "dot", 1: "bar", 2: "ring"}


def of_rows(task, rows, collate=default_data_collator):
    found = datasets.Dataset.from_dict(rows)
    return TaskData(task, None, found, found, collate, Examples(found, found, DataConfig(train="x"), ""))


@pytest.fixture
def images():
    draw = torch.Generator().manual_seed(0)
    labels = [i % 3 for i in range(96)]
    pixels = torch.randn(96, 3, 32, 32, generator=draw) * 0.3
    for row, label in enumerate(labels):  # something to tell them apart by
        pixels[row, label, 8:24, 8 : 12 + 6 * label] += 1.5
    return of_rows(ImageClassification(), {"pixel_values": pixels.numpy(), "labels": labels})
