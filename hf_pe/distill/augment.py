"""Changes to training images that student and teacher see alike: they happen where a batch is made."""

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch.nn import functional

from hf_pe.plans import Frozen
from hf_pe.tasks import Batch


class Augment(Frozen):
    """Random crops and flips of training images, drawn anew for each (Beyer et al. 2022, arXiv:2106.05237: the teacher
    has to see the very image that the student sees)."""

    crop: float = Field(0.125, ge=0, lt=1, description="share of a side that images are shifted by at most")
    flip: bool = Field(True, description="left and right exchanged in half of the images")

    def over(self, collate: Callable[[list[dict[str, Any]]], Batch]) -> Callable[[list[dict[str, Any]]], Batch]:
        """`collate` with the images of its batches changed."""

        def changed(rows: list[dict[str, Any]]) -> Batch:
            batch = collate(rows)
            return batch | {"pixel_values": self.changed(batch["pixel_values"])}

        return changed

    def changed(self, images: torch.Tensor) -> torch.Tensor:
        """Images [batch, channels, height, width], shifted with zeros behind and flipped; by torch's own generator."""
        count, _, height, width = images.shape
        by_y, by_x = (round(self.crop * side) for side in (height, width))
        padded = functional.pad(images, (by_x, by_x, by_y, by_y))
        ys, xs = (torch.randint(0, 2 * most + 1, (count,)).tolist() for most in (by_y, by_x))
        moved = torch.stack(
            [image[:, y : y + height, x : x + width] for image, y, x in zip(padded, ys, xs, strict=True)]
        )
        if self.flip:
            chosen = torch.rand(count) < 0.5
            moved[chosen] = moved[chosen].flip(-1)
        return moved
