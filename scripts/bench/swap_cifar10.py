"""Backbone swaps on CIFAR-10.

A RegNet trained here, its backbone swapped for a MobileNetV2 and an EfficientNet, beside the same nets from scratch and
by plain logits distillation, each for the same processor time; their accuracy by the stitching layer alone; and what an
ImageNet backbone brings.

Time is processor time (all threads), so that what else runs on the machine does not count. Learning rates are chosen,
for each way alike, on 5,000 training images that are held back. The teacher is kept in build/bench for the next run.
Needs ../shared/data/cifar10 and ../shared/models/mobilenetv2-imagenet. Seeds: --seeds (default 5; 3 are enough).
Seconds: --teacher (7200: an hour on two cores) and --student (240, fitting and stitching layer included). A part alone,
beside another on the next core: --only.
"""

import argparse
import copy
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
from common import ROOT, SHARED, bootstrap, gain, row, write
from prune_vit import HELD_BACK, Images, images, right
from torch.nn import functional
from transformers import RegNetConfig, RegNetForImageClassification, default_data_collator, set_seed
from transformers.models.regnet.modeling_regnet import RegNetYLayer

from hf_pe.backbones import BackboneSwap
from hf_pe.data import DataConfig, Examples
from hf_pe.distill import Augment, Distillation
from hf_pe.measure import latency, parameters
from hf_pe.recipe import StageState
from hf_pe.tasks import ImageClassification, TaskData
from hf_pe.weight_transfer import random_init

BATCH, TAUGHT, CALIBRATION, TRIED = 128, 64, 1024, 0.15
CROP = Augment(crop=0.125, flip=True)
TEACHER = {
    "num_labels": 10,
    "embedding_size": 16,
    "hidden_sizes": [16, 32, 64, 256],
    "depths": [14, 18, 16, 4],
    "groups_width": 256,
    "layer_type": "y",
    "downsample_in_first_stage": False,
}
ONTO: dict[str, dict[str, Any]] = {
    "mobilenet_v2": {"to": "mobilenet_v2_0.35", "config": {"tf_padding": False}},
    "efficientnet": {"to": "efficientnet_b0", "config": {"width_coefficient": 0.5, "depth_coefficient": 0.3}},
}
WAYS: dict[str, dict[str, Any]] = {
    "hf_pe": {"losses": {"features": 1.0, "kl": 1.0, "task": 0.5}, "head_first": 0.02},
    "logits distillation": {"losses": {"kl": 1.0, "task": 0.5}},
    "from scratch": {"losses": {"task": 1.0}},
}
PARTS = ("bridge", "imagenet")
"""Beside the nets that are trained."""
RATES = (1e-3, 4e-3)
STEP: dict[str, tuple[float, float]] = {}
"""Seconds of processor time that a run takes besides its steps, and that a step takes, by way and net."""


def teacher(train: Images, seconds: float) -> RegNetForImageClassification:
    """Train the teacher by AdamW, one cycle of the learning rate over the time there is.

    Each block begins as the identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1); otherwise so many thin blocks
    learn slowly.
    """
    kept = ROOT / "build" / "bench" / "regnet"
    if kept.exists():
        return RegNetForImageClassification.from_pretrained(kept).eval()
    set_seed(0)
    model: Any = RegNetForImageClassification(RegNetConfig(**TEACHER)).train().to(memory_format=torch.channels_last)
    for block in (m for m in model.modules() if isinstance(m, RegNetYLayer)):
        torch.nn.init.zeros_(block.layer[-1].normalization.weight)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups)
    start, said = time.process_time(), -1
    for rows in endless(len(train[1])):
        done = (time.process_time() - start) / seconds
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(done / 0.2, (1 - done) / 0.8)
        images = CROP.changed(train[0][rows]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(pixel_values=images).logits
        loss = functional.cross_entropy(logits.float(), train[1][rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if int(done * 20) > said:
            said = int(done * 20)
            print(f"teacher {done:.0%} {float(loss.detach()):.3f}", flush=True)
    model.eval().to(memory_format=torch.contiguous_format).save_pretrained(kept)
    return model  # type: ignore[no-any-return]


def endless(count: int) -> Iterator[torch.Tensor]:
    """Batches of row numbers, epoch after epoch."""
    while True:
        yield from torch.randperm(count).split(BATCH)[:-1]


def undilated_(model: Any) -> Any:
    """Compute each dilated depthwise convolution as a plain one on d x d interleaved images, which is the same sum.

    The backward pass through dilated ones takes twenty times as long on CPUs.
    """

    def forward(layer: torch.nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        d, (rows, channels, height, width) = layer.dilation[0], images.shape
        if d == height == width:  # all but the middle of the kernel lies outside
            return images * layer.weight[:, 0, 1, 1, None, None]
        apart = images.view(rows, channels, height // d, d, width // d, d).permute(0, 3, 5, 1, 2, 4)
        apart = apart.reshape(-1, channels, height // d, width // d).contiguous(memory_format=torch.channels_last)
        found = functional.conv2d(apart, layer.weight, layer.bias, padding=1, groups=channels)
        found = found.view(rows, d, d, channels, height // d, width // d).permute(0, 3, 4, 1, 5, 2)
        return found.reshape(images.shape)

    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.dilation[0] > 1 and layer.kernel_size == (3, 3):
            layer.forward = partial(forward, layer)  # type: ignore[method-assign]
    return model


@torch.no_grad()
def fast(model: Any) -> Any:
    """A copy that answers a batch soonest: float32, or bfloat16 where the processor has it."""
    batch = torch.randn(TAUGHT, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    taken = {}
    for kind in (torch.float32, torch.bfloat16):
        one = copy.deepcopy(model).to(kind, memory_format=torch.channels_last)
        one(batch.to(kind))
        start = time.process_time()
        for _ in range(5):
            one(batch.to(kind))
        taken[time.process_time() - start] = one
    return taken[min(taken)]


def lessons(train: Images, of: Any) -> TaskData:
    columns = {"pixel_values": datasets.Array3D((3, 32, 32), "float32"), "labels": datasets.Value("int64")}
    rows = datasets.Dataset.from_dict(
        {"pixel_values": train[0].numpy(), "labels": train[1].numpy()}, datasets.Features(columns)
    ).with_format("torch")
    told = Examples(rows, rows, DataConfig(train="cifar10", calibration=CALIBRATION), "")
    return TaskData(ImageClassification(), None, rows, rows, default_data_collator, told, teacher=of)


def student(way: str, onto: dict[str, Any], model: Any, data: TaskData, seed: int) -> Any:
    """Where each way begins: with a stitching layer to the teacher's head, or from nothing."""
    swap = BackboneSwap(**{"seed": seed, "image_size": 32, "fit": way == "hf_pe"} | onto)
    small = swap.carry_out(StageState(model, data)).model
    if way != "hf_pe":
        set_seed(seed)
        small = random_init(type(small), small.config).eval()
    return undilated_(small.to(memory_format=torch.channels_last))


def made(way: str, onto: dict[str, Any], model: Any, data: TaskData, rate: float, seconds: float, seed: int) -> Any:
    """A student after `seconds` of processor time, of which the stitching layer takes its part."""
    start = time.process_time()
    small = student(way, onto, model, data, seed)
    bridge = time.process_time() - start if way == "hf_pe" else 0.0
    return taught(way, small, data, rate, seconds - bridge, seed)


def taught(way: str, small: Any, data: TaskData, rate: float, seconds: float, seed: int) -> Any:
    """For `seconds` of processor time: some steps are timed first, once for each way and net.

    What is logged asks the teacher 50 times in a run, of 50 steps or more; who learns from labels asks a small one.
    """
    if way == "from scratch":
        data = replace(data, teacher=copy.deepcopy(small))
    told = {
        "batch_size": TAUGHT,
        "learning_rate": rate,
        "weight_decay": 0.05,
        "augment": CROP,
        **WAYS[way],
        "seed": seed,
    }
    key = f"{way} {type(small).__name__} {parameters(small).total}"
    if key not in STEP:
        taken = []
        for steps in (50, 100):
            start = time.process_time()
            Distillation(**told, steps=steps).carry_out(StageState(small, data))
            taken.append(time.process_time() - start)
        STEP[key] = (2 * taken[0] - taken[1], (taken[1] - taken[0]) / 50)
    beside, each = STEP[key]
    steps = max(round((seconds - beside) / each), 50)
    start = time.process_time()
    learned = Distillation(**told, steps=steps).carry_out(StageState(small, data)).model
    took = time.process_time() - start
    STEP[key] = (beside, (took - beside) / steps)
    print(f"  {way} rate {rate:g}: {steps} steps of {each:.3f} s, {took:.0f} s in all", flush=True)
    return learned


def untrained(name: str, model: Any, data: TaskData, test: Images, told: Any) -> dict[bool, list[np.ndarray]]:
    """Which test images a student has right by the stitching layer alone: fitted to the teacher's maps, and random."""
    found: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for seed in range(told.seeds):
        for fit, scores in found.items():
            scores.append(right(student("hf_pe", ONTO[name] | {"fit": fit}, model, data, seed), test))
            print("bridge", name, seed, "fitted" if fit else "random", f"{scores[-1].mean():.4f}", flush=True)
    return found


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--teacher", type=float, default=7200)
    arguments.add_argument("--student", type=float, default=240)
    arguments.add_argument("--only", choices=[*ONTO, *PARTS], action="append", help="default: all of them")
    told = arguments.parse_args()
    pixels, labels = images("train")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held, rest = order[:HELD_BACK], order[HELD_BACK:]
    train, dev, test = (pixels[rest], labels[rest]), (pixels[held], labels[held]), images("test")
    model = teacher(train, told.teacher)
    dense = right(model, test)
    print("teacher", f"{parameters(model).total:,} parameters, test {dense.mean():.4f}", flush=True)
    data = lessons(train, fast(model))
    rows: list[dict[str, Any]] = []
    for name in told.only or [*ONTO, *PARTS]:
        if name == "bridge":
            rows += [single_axis_paths(net, untrained(net, model, data, test, told), dense, told) for net in ONTO]
        elif name == "imagenet":
            rows.append(brought(imagenet(model, data, test, told), dense, told))
        else:
            rows += figures(name, model, dense, onto(name, model, data, dev, test, told), told)
        write("swap_cifar10", rows)


def onto(name: str, model: Any, data: TaskData, dev: Images, test: Images, told: Any) -> dict[str, Any]:
    """Which test images each way has right, by seed, and one of its students."""
    found: dict[str, Any] = {way: [] for way in WAYS}
    for way in WAYS:
        tried = {}
        for rate in RATES:
            tried[rate] = right(made(way, ONTO[name], model, data, rate, told.student * TRIED, 0), dev).mean()
        best = max(tried, key=lambda rate: tried[rate])
        for seed in range(told.seeds):
            learned = made(way, ONTO[name], model, data, best, told.student, seed)
            found[way].append(right(learned, test))
            print(name, seed, way, f"{found[way][-1].mean():.4f}", flush=True)
    return found | {"small": learned}


def figures(name: str, model: Any, dense: np.ndarray, found: dict[str, Any], told: Any) -> list[dict[str, Any]]:
    small = found["small"].to(memory_format=torch.contiguous_format)
    taken = latency({"teacher": model, "small": small}, batch=1, seconds=4.0)
    fewer = parameters(model).total / parameters(small).total
    setting = (
        f"RegNet on CIFAR-10 ({parameters(model).total:,} parameters, test accuracy {dense.mean():.4f} after "
        f"{told.teacher / 3600:.1f} h of one core) onto {ONTO[name]} ({fewer:.1f} times fewer parameters, "
        f"{taken['teacher'].p50_ms / taken['small'].p50_ms:.1f} times as fast at batch 1), {told.student:.0f} s of "
        f"processor time for each; mean over {told.seeds} seeds"
    )
    scores = {way: np.array([v.mean() for v in found[way]]) for way in WAYS}
    ours = scores["hf_pe"]
    return [
        gain(f"swap.1.{name}.scratch", ours, scores["from scratch"], "the same net from scratch", setting),
        gain(f"swap.1.{name}.logits", ours, scores["logits distillation"], "plain logits distillation", setting),
        row(
            f"swap.1.{name}.kept",
            float(ours.mean() / dense.mean()),
            0.98,
            "higher",
            "of the teacher's accuracy",
            f"{setting}; interval over images (paired bootstrap)",
            peers={way: float(values.mean() / dense.mean()) for way, values in scores.items()},
            interval=bootstrap(lambda i: np.mean([v[i].mean() for v in found["hf_pe"]]) / dense[i].mean(), len(dense)),
        ),
    ]


def single_axis_paths(name: str, found: dict[bool, list[np.ndarray]], dense: np.ndarray, told: Any) -> dict[str, Any]:
    fitted, random = (float(np.mean(found[fit])) for fit in (True, False))
    return row(
        f"swap.3.{name}",
        fitted,
        0.1,
        "higher",
        "accuracy by the stitching layer alone",
        f"RegNet on CIFAR-10 (test accuracy {dense.mean():.4f}) onto {ONTO[name]} without weights, {CALIBRATION} "
        f"calibration images, nothing trained; mean over {told.seeds} seeds; goal: chance; interval over images "
        "(bootstrap)",
        peers={"chance": 0.1, "random body": random, "teacher": float(dense.mean())},
        interval=bootstrap(lambda i: np.mean([v[i].mean() for v in found[True]]), len(dense)),
    )


def imagenet(model: Any, data: TaskData, test: Images, told: Any) -> dict[str, list[np.ndarray]]:
    """Train MobileNetV2 1.0 with ImageNet's weights and with random ones under the teacher's head.

    Neither is fitted to the teacher's feature maps first.
    """
    found: dict[str, list[np.ndarray]] = {"ImageNet": [], "random": []}
    place = str(SHARED / "models" / "mobilenetv2-imagenet")
    for seed in range(told.seeds):
        for name in found:
            to = {"to": place, "weights": name == "ImageNet", "fit": False}
            learned = made("hf_pe", to, model, data, RATES[0], told.student, seed)
            found[name].append(right(learned, test))
            print("imagenet", seed, name, f"{found[name][-1].mean():.4f}", flush=True)
    return found


def brought(found: dict[str, list[np.ndarray]], dense: np.ndarray, told: Any) -> dict[str, Any]:
    ours, random = (np.array([v.mean() for v in found[name]]) for name in ("ImageNet", "random"))
    setting = (
        f"MobileNetV2 1.0 trained on ImageNet under the head of the RegNet (test accuracy {dense.mean():.4f}), "
        f"features and answers taught for {told.student:.0f} s of processor time; mean over {told.seeds} seeds"
    )
    return gain("swap.2.pretrained", ours, random, "the same from random weights", setting)


if __name__ == "__main__":
    main()
