"""Compare backbone swaps on CIFAR-10 with training from scratch and with plain logits distillation.

The script trains a RegNet as the teacher and swaps its backbone for a MobileNetV2 and an EfficientNet. The same nets
learn from scratch and by logits distillation for the same processor time. Two more parts measure the accuracy by the
stitching layer alone, and the gain of a backbone that was trained on ImageNet.

Time is processor time (all threads), so that other programs on the machine do not count. The learning rate of every
method is chosen alike on 5,000 training images that are held back. The teacher is saved in build/bench for the next
run. The script needs ../shared/data/cifar10 and ../shared/models/mobilenetv2-imagenet. `--seeds` sets the number of
seeds (default 5; 3 are enough); `--teacher` (7200: an hour on two cores) and `--student` (240, fitting of the stitching
layer included) set the seconds; `--only` runs a part alone, so that two parts can run on a core each.
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
"""Parts of the benchmark besides the nets of ONTO."""
RATES = (1e-3, 4e-3)
STEP: dict[str, tuple[float, float]] = {}
"""Seconds of processor time that a run takes besides its steps, and that a step takes, by way and net."""


def teacher(train: Images, seconds: float) -> RegNetForImageClassification:
    """Train the teacher by AdamW, with a single cycle of the learning rate over `seconds` of processor time.

    Each block begins as the identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1); otherwise so many thin blocks
    learn slowly.
    """
    folder = ROOT / "build" / "bench" / "regnet"
    if folder.exists():
        return RegNetForImageClassification.from_pretrained(folder).eval()
    set_seed(0)
    model: Any = RegNetForImageClassification(RegNetConfig(**TEACHER)).train().to(memory_format=torch.channels_last)
    for block in (m for m in model.modules() if isinstance(m, RegNetYLayer)):
        torch.nn.init.zeros_(block.layer[-1].normalization.weight)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    undecayed = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": undecayed, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups)
    start, last_printed = time.process_time(), -1
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
        if int(done * 20) > last_printed:
            last_printed = int(done * 20)
            print(f"teacher {done:.0%} {float(loss.detach()):.3f}", flush=True)
    model.eval().to(memory_format=torch.contiguous_format).save_pretrained(folder)
    return model  # type: ignore[no-any-return]


def endless(count: int) -> Iterator[torch.Tensor]:
    """Yield batches of row numbers, epoch after epoch."""
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
        interleaved = images.view(rows, channels, height // d, d, width // d, d).permute(0, 3, 5, 1, 2, 4)
        interleaved = interleaved.reshape(-1, channels, height // d, width // d).contiguous(
            memory_format=torch.channels_last
        )
        sums = functional.conv2d(interleaved, layer.weight, layer.bias, padding=1, groups=channels)
        sums = sums.view(rows, d, d, channels, height // d, width // d).permute(0, 3, 4, 1, 5, 2)
        return sums.reshape(images.shape)

    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.dilation[0] > 1 and layer.kernel_size == (3, 3):
            layer.forward = partial(forward, layer)  # type: ignore[method-assign]
    return model


@torch.no_grad()
def fast(model: Any) -> Any:
    """Return a copy of the model in float32 or bfloat16, whichever computes a batch in less processor time."""
    batch = torch.randn(TAUGHT, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    copies = {}
    for kind in (torch.float32, torch.bfloat16):
        converted = copy.deepcopy(model).to(kind, memory_format=torch.channels_last)
        converted(batch.to(kind))
        start = time.process_time()
        for _ in range(5):
            converted(batch.to(kind))
        copies[time.process_time() - start] = converted
    return copies[min(copies)]


def lessons(train: Images, teacher_model: Any) -> TaskData:
    """Return the training images as task data whose teacher is `teacher_model`."""
    columns = {"pixel_values": datasets.Array3D((3, 32, 32), "float32"), "labels": datasets.Value("int64")}
    rows = datasets.Dataset.from_dict(
        {"pixel_values": train[0].numpy(), "labels": train[1].numpy()}, datasets.Features(columns)
    ).with_format("torch")
    examples = Examples(rows, rows, DataConfig(train="cifar10", calibration=CALIBRATION), "")
    return TaskData(ImageClassification(), None, rows, rows, default_data_collator, examples, teacher=teacher_model)


def student(way: str, onto: dict[str, Any], model: Any, data: TaskData, seed: int) -> Any:
    """Return the student before training: with a stitching layer to the teacher's head for hf_pe, else random."""
    swap = BackboneSwap(**{"seed": seed, "image_size": 32, "fit": way == "hf_pe"} | onto)
    small = swap.carry_out(StageState(model, data)).model
    if way != "hf_pe":
        set_seed(seed)
        small = random_init(type(small), small.config).eval()
    return undilated_(small.to(memory_format=torch.channels_last))


def trained_student(
    way: str, onto: dict[str, Any], model: Any, data: TaskData, rate: float, seconds: float, seed: int
) -> Any:
    """Return a student after `seconds` of processor time, which include the fitting of the stitching layer."""
    start = time.process_time()
    small = student(way, onto, model, data, seed)
    stitching_seconds = time.process_time() - start if way == "hf_pe" else 0.0
    return taught(way, small, data, rate, seconds - stitching_seconds, seed)


def taught(way: str, small: Any, data: TaskData, rate: float, seconds: float, seed: int) -> Any:
    """Train a student for `seconds` of processor time; its steps are timed first, once for each way and net.

    Logging runs the teacher 50 times in each run of 50 steps or more, so a student that learns from labels alone gets a
    copy of itself as a cheap teacher.
    """
    if way == "from scratch":
        data = replace(data, teacher=copy.deepcopy(small))
    options = {
        "batch_size": TAUGHT,
        "learning_rate": rate,
        "weight_decay": 0.05,
        "augment": CROP,
        **WAYS[way],
        "seed": seed,
    }
    key = f"{way} {type(small).__name__} {parameters(small).total}"
    if key not in STEP:
        durations = []
        for steps in (50, 100):
            start = time.process_time()
            Distillation(**options, steps=steps).carry_out(StageState(small, data))
            durations.append(time.process_time() - start)
        STEP[key] = (2 * durations[0] - durations[1], (durations[1] - durations[0]) / 50)
    fixed, per_step = STEP[key]
    steps = max(round((seconds - fixed) / per_step), 50)
    start = time.process_time()
    learned = Distillation(**options, steps=steps).carry_out(StageState(small, data)).model
    duration = time.process_time() - start
    STEP[key] = (fixed, (duration - fixed) / steps)
    print(f"  {way} rate {rate:g}: {steps} steps of {per_step:.3f} s, {duration:.0f} s in all", flush=True)
    return learned


def untrained(name: str, model: Any, data: TaskData, test: Images, arguments: Any) -> dict[bool, list[np.ndarray]]:
    """Return which test images the student classifies correctly by the stitching layer alone, for each seed.

    The key True holds bodies that are fitted to the teacher's feature maps, False random ones.
    """
    correct: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for seed in range(arguments.seeds):
        for fit, scores in correct.items():
            scores.append(right(student("hf_pe", ONTO[name] | {"fit": fit}, model, data, seed), test))
            print("bridge", name, seed, "fitted" if fit else "random", f"{scores[-1].mean():.4f}", flush=True)
    return correct


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--teacher", type=float, default=7200)
    parser.add_argument("--student", type=float, default=240)
    parser.add_argument("--only", choices=[*ONTO, *PARTS], action="append", help="default: all of them")
    arguments = parser.parse_args()
    pixels, labels = images("train")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held, rest = order[:HELD_BACK], order[HELD_BACK:]
    train, dev, test = (pixels[rest], labels[rest]), (pixels[held], labels[held]), images("test")
    model = teacher(train, arguments.teacher)
    dense = right(model, test)
    print("teacher", f"{parameters(model).total:,} parameters, test {dense.mean():.4f}", flush=True)
    data = lessons(train, fast(model))
    rows: list[dict[str, Any]] = []
    for name in arguments.only or [*ONTO, *PARTS]:
        if name == "bridge":
            rows += [
                stitching_alone(net, untrained(net, model, data, test, arguments), dense, arguments) for net in ONTO
            ]
        elif name == "imagenet":
            rows.append(brought(imagenet(model, data, test, arguments), dense, arguments))
        else:
            rows += figures(name, model, dense, onto(name, model, data, dev, test, arguments), arguments)
        write("swap_cifar10", rows)


def onto(name: str, model: Any, data: TaskData, dev: Images, test: Images, arguments: Any) -> dict[str, Any]:
    """Return which test images each way classifies correctly, for each seed, and under "small" the last student."""
    correct: dict[str, Any] = {way: [] for way in WAYS}
    for way in WAYS:
        accuracies = {}
        for rate in RATES:
            accuracies[rate] = right(
                trained_student(way, ONTO[name], model, data, rate, arguments.student * TRIED, 0), dev
            ).mean()
        best = max(accuracies, key=lambda rate: accuracies[rate])
        for seed in range(arguments.seeds):
            learned = trained_student(way, ONTO[name], model, data, best, arguments.student, seed)
            correct[way].append(right(learned, test))
            print(name, seed, way, f"{correct[way][-1].mean():.4f}", flush=True)
    return correct | {"small": learned}


def figures(name: str, model: Any, dense: np.ndarray, correct: dict[str, Any], arguments: Any) -> list[dict[str, Any]]:
    """Return the rows that compare the swap onto a net with the other ways and with the teacher."""
    small = correct["small"].to(memory_format=torch.contiguous_format)
    latencies = latency({"teacher": model, "small": small}, batch=1, seconds=4.0)
    fewer = parameters(model).total / parameters(small).total
    setting = (
        f"RegNet on CIFAR-10 ({parameters(model).total:,} parameters, test accuracy {dense.mean():.4f} after "
        f"{arguments.teacher / 3600:.1f} h of one core) onto {ONTO[name]} ({fewer:.1f} times fewer parameters, "
        f"{latencies['teacher'].p50_ms / latencies['small'].p50_ms:.1f} times as fast at batch 1), "
        f"{arguments.student:.0f} s of processor time for each; mean over {arguments.seeds} seeds"
    )
    scores = {way: np.array([v.mean() for v in correct[way]]) for way in WAYS}
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
            interval=bootstrap(
                lambda i: np.mean([v[i].mean() for v in correct["hf_pe"]]) / dense[i].mean(), len(dense)
            ),
        ),
    ]


def stitching_alone(
    name: str, correct: dict[bool, list[np.ndarray]], dense: np.ndarray, arguments: Any
) -> dict[str, Any]:
    """Return the row of the accuracy by the stitching layer alone."""
    fitted, random = (float(np.mean(correct[fit])) for fit in (True, False))
    return row(
        f"swap.3.{name}",
        fitted,
        0.1,
        "higher",
        "accuracy by the stitching layer alone",
        f"RegNet on CIFAR-10 (test accuracy {dense.mean():.4f}) onto {ONTO[name]} without weights, {CALIBRATION} "
        f"calibration images, nothing trained; mean over {arguments.seeds} seeds; goal: chance; interval over images "
        "(bootstrap)",
        peers={"chance": 0.1, "random body": random, "teacher": float(dense.mean())},
        interval=bootstrap(lambda i: np.mean([v[i].mean() for v in correct[True]]), len(dense)),
    )


def imagenet(model: Any, data: TaskData, test: Images, arguments: Any) -> dict[str, list[np.ndarray]]:
    """Train MobileNetV2 1.0 with ImageNet's weights and with random ones under the teacher's head.

    Neither is fitted to the teacher's feature maps first.
    """
    correct: dict[str, list[np.ndarray]] = {"ImageNet": [], "random": []}
    checkpoint = str(SHARED / "models" / "mobilenetv2-imagenet")
    for seed in range(arguments.seeds):
        for name in correct:
            to = {"to": checkpoint, "weights": name == "ImageNet", "fit": False}
            learned = trained_student("hf_pe", to, model, data, RATES[0], arguments.student, seed)
            correct[name].append(right(learned, test))
            print("imagenet", seed, name, f"{correct[name][-1].mean():.4f}", flush=True)
    return correct


def brought(correct: dict[str, list[np.ndarray]], dense: np.ndarray, arguments: Any) -> dict[str, Any]:
    """Return the row of the gain by ImageNet's weights over random ones."""
    ours, random = (np.array([v.mean() for v in correct[name]]) for name in ("ImageNet", "random"))
    setting = (
        f"MobileNetV2 1.0 trained on ImageNet under the head of the RegNet (test accuracy {dense.mean():.4f}), "
        f"features and answers taught for {arguments.student:.0f} s of processor time; mean over "
        f"{arguments.seeds} seeds"
    )
    return gain("swap.2.pretrained", ours, random, "the same from random weights", setting)


if __name__ == "__main__":
    main()
