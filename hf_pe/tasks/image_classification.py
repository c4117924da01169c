"""Image classification: a model chooses a label for each image."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import PretrainedConfig

from hf_pe.data import Examples
from hf_pe.errors import UsageError
from hf_pe.tasks.base import TaskData
from hf_pe.tasks.batch import Batch
from hf_pe.tasks.classification import Classification, with_labels, with_media


@dataclass(frozen=True)
class ImageClassification(Classification):
    """Choose a label for an image.

    An image is the name of a file or the bytes of one. It is read only when a batch is made.

    Example:
        >>> ImageClassification().processor_class
        'AutoImageProcessor'
    """

    name = "image_classification"
    auto_class = "AutoModelForImageClassification"
    architectures = ("ForImageClassification",)
    processor_class = "AutoImageProcessor"
    pipeline_tag = "image-classification"

    def prepare(self, examples: Examples, processor: Any, config: PretrainedConfig) -> TaskData:
        """Translate the labels into the model's; files are read batch by batch.

        Raises:
            UsageError: no column with images or labels is named, or an image or a label cannot be read.
        """
        column = examples.config.image
        return with_media(self, examples, processor, config, column, ImageCollator(processor, column or ""), read_image)


@dataclass(frozen=True)
class ImageCollator:
    """Makes a batch of rows with images."""

    processor: Any
    column: str

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Return `pixel_values` [batch, channels, height, width] and the labels."""
        inputs = self.processor(images=[read_image(row[self.column]) for row in rows], return_tensors="pt")
        return with_labels({"pixel_values": inputs["pixel_values"]}, rows)


def read_image(image: Any) -> Image.Image:
    """Return an image in RGB from a file name, the bytes of a file, {"bytes", "path"} or an image.

    Raises:
        UsageError: the image cannot be read.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    try:
        return Image.open(io.BytesIO(image) if isinstance(image, bytes) else Path(image)).convert("RGB")
    except (OSError, TypeError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        what = f"an image of {len(image):,} bytes" if isinstance(image, bytes) else repr(str(image))
        raise UsageError(f"Data: {what} cannot be read: {error}") from error
