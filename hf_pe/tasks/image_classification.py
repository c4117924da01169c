"""Image classification: one label per image."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.data import Examples
from hf_pe.errors import UsageError
from hf_pe.tasks.base import ROW, Batch, Judged, TaskData
from hf_pe.tasks.classification import DESCRIPTION, class_signals, judged_classes, label_column, label_numbers, labelled


@dataclass(frozen=True)
class ImageClassification:
    """Images are file names or the bytes of a file; they stay that until a batch is made."""

    name: str = "image_classification"
    auto_class: str = "AutoModelForImageClassification"
    pipeline_tag: str = "image-classification"
    metric: str = "accuracy"
    higher_is_better: bool = True

    def prepare(self, examples: Examples, processor: Any, config: PretrainedConfig) -> TaskData:
        """Translate the labels into the model's; images are read and resized batch by batch."""
        options = examples.config
        label = label_column(options)
        if not options.image:
            raise UsageError("data.image: expected the name of the column with the images, got nothing.")
        column = options.image

        def rows(found: datasets.Dataset) -> datasets.Dataset:
            return labelled(found.select_columns([column]), label_numbers(found[label], config))

        return TaskData(self, processor, rows(examples.train), rows(examples.eval), Pixels(processor, column), examples)

    def signals(self, model: PreTrainedModel, batch: Batch, *, hidden: bool = False) -> dict[str, Any]:
        """Logits [batch, labels], the task loss and, on request, hidden states."""
        return class_signals(model, batch, hidden=hidden)

    def describe(self, examples: Examples) -> str:
        """Says what is averaged."""
        return DESCRIPTION

    def judge(self, model: PreTrainedModel, data: TaskData) -> Judged:
        """Predicted and given label of each row; a slice per label."""
        return judged_classes(self, model, data)


@dataclass(frozen=True)
class Pixels:
    """Makes a batch of rows with images."""

    processor: Any
    column: str

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Pixels [batch, channels, height, width] and labels."""
        found = self.processor(images=[opened(row[self.column]) for row in rows], return_tensors="pt")
        batch: Batch = {"pixel_values": found["pixel_values"]}
        for name in ("labels", ROW):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        return batch


def opened(image: Any) -> Image.Image:
    """An image from a file name, the bytes of a file, {"bytes", "path"} or an image.

    Raises:
        UsageError: it is none.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    try:
        return Image.open(io.BytesIO(image) if isinstance(image, bytes) else Path(image)).convert("RGB")
    except (OSError, TypeError) as error:
        raise UsageError(f"Data: {str(image)[:80]!r} is no image that can be read: {error}") from error
