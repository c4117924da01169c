"""Train a ViT on CIFAR-10, remove half of its FFN width and half of its heads, and compare with other tools.

There is no training after the cut. 5,000 training images are held out to choose settings by; each calibration seed
draws 2,048 of the others. The trained model is stored in build/bench for the next run. Needs ../shared/data/cifar10 and
the extra bench. Seeds: --seeds (default 5).
"""

import copy
import io
import time
from collections.abc import Iterator
from itertools import chain

import datasets
import numpy as np
import torch
from common import ROOT, SHARED, seeds, share_of_loss, write
from peers import (
    BY_FLUCTUATION,
    REPAIRED,
    CutModel,
    best_of,
    cut_to,
    fluctuation,
    torch_pruning_choices,
    with_gradients,
)
from PIL import Image
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification, default_data_collator, set_seed

from hf_pe.anatomy import discover
from hf_pe.data import DataConfig, Examples
from hf_pe.prune import StructuredPruning
from hf_pe.prune.criteria import CRITERIA, Criterion
from hf_pe.recipe import StageState
from hf_pe.tasks import TaskData, TextClassification

EPOCHS, BATCH, RATE = 4, 128, 1e-3
HELD_BACK, CALIBRATION = 5_000, 2_048
KEEP = {"ffn": 0.5, "heads": 0.5}
GOAL = 1 / 3
CRITERIA["random"] = Criterion(lambda statistics: torch.rand(statistics.consumer.shape[1]), (), "random choice", None)
OURS = [{"criterion": criterion, "refit": "sequential"} for criterion in ("obs", "obs_kfac")]

Images = tuple[torch.Tensor, torch.Tensor]
"""Pixels [images, 3, 32, 32] and labels."""


def images(split: str) -> Images:
    rows = datasets.Dataset.from_parquet(str(SHARED / "data" / "cifar10" / f"{split}.parquet"))
    raw = [image["bytes"] for image in rows.cast_column("image", datasets.Image(decode=False))["image"]]
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(io.BytesIO(r)).convert("RGB")) for r in raw]))
    return (pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25, torch.tensor(rows["label"])


def trained(pixels: torch.Tensor, labels: torch.Tensor) -> ViTForImageClassification:
    """Train a ViT with 1.2M parameters on images that are flipped at random."""
    kept = ROOT / "build" / "bench" / "vit"
    if kept.exists():
        return ViTForImageClassification.from_pretrained(kept).eval()
    set_seed(0)
    config = ViTConfig(
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=512,
        image_size=32,
        patch_size=4,
        num_labels=10,
    )
    model = ViTForImageClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
    steps = EPOCHS * len(labels) // BATCH
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + EPOCHS, pct_start=0.2)
    start = time.perf_counter()
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(labels)).split(BATCH):
            batch = pixels[rows]
            batch = torch.where(torch.rand(len(rows), 1, 1, 1) < 0.5, batch, batch.flip(3))
            optimizer.zero_grad()
            loss = model(pixel_values=batch, labels=labels[rows]).loss
            loss.backward()
            optimizer.step()
            rates.step()
        print("epoch", epoch, f"{float(loss.detach()):.3f} after {time.perf_counter() - start:.0f} s", flush=True)
    model.eval().save_pretrained(kept)
    return model


class Classification(TextClassification):
    """Classification of images, whose batches have no attention mask."""

    def signals(self, model: PreTrainedModel, batch: dict[str, torch.Tensor], *, hidden: bool = False) -> dict:
        """Return logits and loss."""
        out = model(pixel_values=batch["pixel_values"])
        return {"logits": out.logits, "loss": torch.nn.functional.cross_entropy(out.logits, batch["labels"])}


def task_data(pixels: torch.Tensor, labels: torch.Tensor) -> TaskData:
    rows = datasets.Dataset.from_dict({"pixel_values": pixels.numpy(), "labels": labels.numpy()})
    examples = Examples(rows, rows, DataConfig(train="cifar10", calibration=len(labels)), "")
    return TaskData(Classification(), None, rows, rows, default_data_collator, examples)


@torch.no_grad()
def right(model: PreTrainedModel, of: Images) -> np.ndarray:
    """Return for each image whether the predicted label is right."""
    parts = zip(of[0].split(256), of[1].split(256), strict=True)
    return torch.cat([model(pixel_values=p).logits.argmax(-1) == n for p, n in parts]).numpy().astype(float)


def by_peers(model: PreTrainedModel, data: TaskData) -> Iterator[CutModel]:
    axes = {name: discover(model.config, type(model)).named(name)[0] for name in KEEP}
    sizes = {name: round(axis.size * KEEP[name]) for name, axis in axes.items()}
    graded = copy.deepcopy(model)
    with_gradients(graded, data, lambda m, b: Classification().signals(m, b)["loss"])
    inputs = {"pixel_values": torch.zeros(1, 3, 32, 32)}
    choices = {name: torch_pruning_choices(graded, axis, sizes[name], inputs) for name, axis in axes.items()}
    for tool in choices["ffn"]:
        for parts in zip(*(by_tool[tool] for by_tool in choices.values()), strict=True):
            kept = {name: units for part in parts for name, units in part.items()}
            yield tool, "", cut_to(model, kept, data)
            yield tool + REPAIRED, "", cut_to(model, kept, data, "least_squares")
    for suffix in ("", REPAIRED):
        small = model
        for name in reversed(KEEP):
            axis = discover(small.config, type(small)).named(name)[0]
            small = fluctuation(small, axis, sizes[name], data, ours=bool(suffix))
        yield BY_FLUCTUATION + suffix, "", small
    for name, settings in {
        "activation x weight (reimplementation of structured Wanda)": {"criterion": "activation_weight"},
        "random": {"criterion": "random"},
    }.items():
        recipe = StructuredPruning(keep=KEEP, refit="none", **settings)
        yield name, "", recipe.carry_out(StageState(model, data)).model


def by_us(model: PreTrainedModel, data: TaskData) -> Iterator[CutModel]:
    for settings in OURS:
        recipe = StructuredPruning(keep=KEEP, **settings)
        yield "hf_pe", settings, recipe.carry_out(StageState(model, data)).model


def main() -> None:
    count = seeds()
    pixels, labels = images("train")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pixels, labels = pixels[order], labels[order]
    dev, test = (pixels[:HELD_BACK], labels[:HELD_BACK]), images("test")
    pixels, labels = pixels[HELD_BACK:], labels[HELD_BACK:]
    model = trained(pixels, labels)
    dense = right(model, test)
    print("dense", dense.mean(), right(model, dev).mean(), flush=True)
    results: dict[str, list[np.ndarray]] = {}
    for seed in range(count):
        set_seed(seed)
        rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:CALIBRATION]
        data = task_data(pixels[rows], labels[rows])
        models = chain(by_peers(model, data), by_us(model, data))
        for name, way, small in best_of(models, lambda small: right(small, dev).mean()).values():
            results.setdefault(name, []).append(right(small, test))
            print(seed, name, way, f"{results[name][-1].mean():.4f}", flush=True)
        what = (
            f"ViT of 1.2M parameters, {EPOCHS} epochs on CIFAR-10, half of FFN width and of heads removed, "
            f"{CALIBRATION:,} images a set"
        )
        write("prune_vit", [share_of_loss("prune.4.vit50", GOAL, dense, results, what)])


if __name__ == "__main__":
    main()
