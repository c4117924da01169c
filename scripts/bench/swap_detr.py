"""Exchange the backbone of a small DETR, train it for an epoch on made-up boxes, and reload it with stock classes."""

import tempfile
import time
from typing import Any

import datasets
import numpy as np
import torch
from common import row, write
from transformers import AutoModelForObjectDetection, DetrConfig, DetrForObjectDetection, ResNetConfig, set_seed

from hf_pe.backbones import BackboneSwap
from hf_pe.data import DataConfig, Examples
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.measure import parameters
from hf_pe.recipe import StageState
from hf_pe.tasks import ImageClassification, TaskData

BOXES, BATCH, RATE = 256, 16, 1e-3


def detector() -> DetrForObjectDetection:
    backbone = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128], depths=[2, 2, 2], layer_type="basic", out_features=["stage3"]
    )
    sizes = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 8, "num_labels": 2}
    return DetrForObjectDetection(DetrConfig(backbone_config=backbone, use_timm_backbone=False, **sizes, **heads))


def made_up(seed: int) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Return images of 64 x 64 pixels with a bright or dark box each, and their labels."""
    draw = np.random.default_rng(seed)
    pixels, labels = draw.normal(0, 0.1, (BOXES, 3, 64, 64)).astype(np.float32), []
    for image in pixels:
        width, height = draw.integers(12, 40, 2)
        x, y, kind = draw.integers(0, 64 - width), draw.integers(0, 64 - height), int(draw.integers(2))
        image[:, y : y + height, x : x + width] += (-1.0, 1.0)[kind]
        box = np.array([x + width / 2, y + height / 2, width, height], dtype=np.float32) / 64
        labels.append({"class_labels": torch.tensor([kind]), "boxes": torch.tensor(box)[None]})
    return torch.from_numpy(pixels), labels


def epoch(model: Any, pixels: torch.Tensor, labels: list[dict[str, torch.Tensor]]) -> list[float]:
    """Train for an epoch and return the loss of each step."""
    optimizer, losses = torch.optim.AdamW(model.parameters(), RATE), []
    for start in range(0, BOXES, BATCH):
        optimizer.zero_grad()
        loss = model.train()(pixel_values=pixels[start : start + BATCH], labels=labels[start : start + BATCH]).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


@torch.no_grad()
def detection_loss(model: Any, pixels: torch.Tensor, labels: list[dict[str, torch.Tensor]]) -> float:
    """Return the detection loss on images that the model did not learn from."""
    return float(model.eval()(pixel_values=pixels, labels=labels).loss)


def exchanged_backbone() -> dict[str, Any]:
    """Train a detector, exchange its backbone, train for another epoch, reload it, and return the row."""
    set_seed(0)
    model = detector()
    for number in range(8):
        epoch(model, *made_up(number))
    pixels, _ = made_up(100)
    rows = datasets.Dataset.from_dict({"pixel_values": pixels.numpy()})

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.tensor(np.array([each["pixel_values"] for each in batch], dtype=np.float32))}

    examples = Examples(rows, rows, DataConfig(train="boxes", calibration=BOXES), "")
    data = TaskData(ImageClassification(), None, rows, rows, collate, examples)
    narrow = {"embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [1, 1, 1], "layer_type": "basic"}
    swap = BackboneSwap(to="resnet", config=narrow)
    small = swap.carry_out(StageState(model, data)).model
    held_out = made_up(200)
    before, stitched = detection_loss(model, *held_out), detection_loss(small, *held_out)
    start = time.perf_counter()
    epoch(small, *made_up(101))
    seconds, after = time.perf_counter() - start, detection_loss(small, *held_out)
    set_seed(0)
    alone = type(small)(small.config)
    epoch(alone, *made_up(101))
    with tempfile.TemporaryDirectory() as folder:
        small.save_pretrained(folder)
        again = AutoModelForObjectDetection.from_pretrained(folder).eval()
    gap = difference(*(outputs_of(net, {"pixel_values": held_out[0][:8]}) for net in (small, again)))
    print("detector", before, stitched, after, "reload", gap, flush=True)
    return row(
        "swap.5.detr",
        after,
        detection_loss(alone, *held_out),
        "lower",
        "detection loss on unseen images",
        f"DETR of {parameters(model).total:,} parameters, ResNet backbone of 3 stages exchanged for one of half the "
        f"width and depth ({parameters(small).total:,} in all), one epoch of {BOXES} made-up images of 64 pixels in "
        f"{seconds:.0f} s; stock reload differs by {gap:.0e}; goal: the same small detector from random weights after "
        "the same epoch",
        peers={
            "original": before,
            "stitching layer alone": stitched,
            "from random weights": detection_loss(alone, *held_out),
        },
    )


def main() -> None:
    write("swap_detr", [exchanged_backbone()])


if __name__ == "__main__":
    main()
