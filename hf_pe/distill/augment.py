"""Augments training images when a batch is made, so that student and teacher read the same augmented images."""

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch.nn import functional

from hf_pe.settings import Settings
from hf_pe.tasks import Batch


class Augment(Settings):
    """Crops and flips training images at random.

    Student and teacher read the same augmented image (Beyer et al. 2022, arXiv:2106.05237).
    """

    crop: float = Field(0.125, ge=0, lt=1, description="largest shift of an image as a fraction of its side")
    flip: bool = Field(True, description="mirror half of the images")

    def over(self, collate: Callable[[list[dict[str, Any]]], Batch]) -> Callable[[list[dict[str, Any]]], Batch]:
        """Return a collator that augments the images in the batches of `collate`."""

        def changed(rows: list[dict[str, Any]]) -> Batch:
            batch = collate(rows)
            return batch | {"pixel_values": self.changed(batch["pixel_values"])}

        return changed

    def changed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the augmented images: shifted, with zeros at the border, and flipped by torch's random generator.

        Args:
            images: *Shape:* (batch, channels, height, width)
        """
        count, _, height, width = images.shape
        max_y, max_x = (round(self.crop * side) for side in (height, width))
        padded = functional.pad(images, (max_x, max_x, max_y, max_y))
        ys, xs = (torch.randint(0, 2 * most + 1, (count,)).tolist() for most in (max_y, max_x))
        shifted = torch.stack(
            [image[:, y : y + height, x : x + width] for image, y, x in zip(padded, ys, xs, strict=True)]
        )
        if self.flip:
            flipped = torch.rand(count) < 0.5
            shifted[flipped] = shifted[flipped].flip(-1)
        return shifted
