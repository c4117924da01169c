"""Initializes a random convolutional body from another model's feature maps, in closed form and one forward pass.

Many compact nets are built from *linear bottlenecks*: pointwise convolutions to fewer channels with a batch norm and no
activation after it. As linear layers they can be fitted by regression: each one to the feature map that the original
model has at the same fraction of its depth.
"""

from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from hf_pe.progress import advance
from hf_pe.regression import FOLDS, fit_rows
from hf_pe.stitching import BATCH
from hf_pe.tasks import Batch, TaskData, as_map, as_read_by

MAX_ROWS = 4096
"""Largest number of calibration images that are used."""
MIN_ROWS = 32
"""Smallest number of calibration images; with fewer nothing is fitted."""
MAX_VALUES = 2**28
"""Largest number of values of a feature map over all images, since they pass through the body in one batch."""
MIN_SPREAD = 1e-3
"""Directions whose standard deviation is a smaller fraction of the first one's are noise."""
KERNEL_STD = 0.3
"""Standard deviation of a smoothing kernel, as a fraction of its side."""

Call = tuple[nn.Module, torch.Tensor, torch.Tensor]
"""A module with the first input and the output of its forward pass."""


class Bottleneck(NamedTuple):
    """Hold a linear bottleneck (Sandler et al. 2018, arXiv:1801.04381, section 3.2).

    Attributes:
        conv: a pointwise convolution to fewer channels.
        norm: the batch norm after it.
        block: the module whose input is added to the output of the norm (a shortcut); None without one.
        grid: height and width of their feature map.
    """

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    block: nn.Module | None
    grid: tuple[int, int]


@torch.no_grad()
def initialize_bottlenecks_(old: PreTrainedModel, new: PreTrainedModel, data: TaskData, seed: int = 0) -> int:
    """Fit the linear bottlenecks of a random body to the original's feature maps, on the calibration rows.

    All rows pass through the body once. Where they reach a bottleneck without a shortcut, it becomes the reduced-rank
    regression of the original's map at the same fraction of the depth, averaged to its grid, on its inputs (Izenman
    1975): the directions of the inputs that explain most of that map, as many as it has channels. A bottleneck with a
    shortcut is fitted to what the one before leaves unexplained. Batch norms scale each channel by how much of it is
    explained. Depthwise kernels, and those that read the image, become smoothing, its two derivatives or the identity,
    drawn by channel. Running statistics of batch norms are not set.

    Args:
        old: the original, which has the hidden states; stays as it is.
        new: the random body; changed in place, left in evaluation mode.
        data: its calibration rows pass through both.
        seed: of the kernels.

    Returns:
        The number of bottlenecks that were fitted. Where it is 0 (the body has none, the original returns no feature
        maps, or there are too few rows) nothing has changed.
    """
    new.eval()
    if len(data.calibration) < MIN_ROWS:
        return 0
    first = next(data.batches(data.calibration, 2))
    fitted, largest = bottlenecks(new, first)
    starts = [number for number, bottleneck in enumerate(fitted) if bottleneck.block is None]
    depth = len(_maps(old, first))
    if not starts or depth < 2:
        return 0
    starts, fitted = [number - starts[0] for number in starts], fitted[starts[0] :]
    runs = zip(starts, [*starts[1:], len(fitted)], strict=True)  # one without a shortcut and those that add to it
    layers = {start: 1 + round((end - 1) / max(len(fitted) - 1, 1) * (depth - 2)) for start, end in runs}
    rows = data.calibration.select(range(min(MAX_ROWS, len(data.calibration), max(MAX_VALUES // largest, BATCH))))
    batches: list[Batch] = []
    targets: dict[int, list[torch.Tensor]] = {start: [] for start in starts}
    for number, batch in enumerate(data.batches(rows, BATCH)):
        maps = _maps(old, batch)
        for start, layer in layers.items():
            height, width = (min(sides) for sides in zip(maps[layer].shape[2:], fitted[start].grid, strict=True))
            targets[start].append(functional.adaptive_avg_pool2d(maps[layer], (height, width)).to(new.device))
        batches.append(batch)
        advance("feature maps", min((number + 1) * BATCH, len(rows)), len(rows))
    initialize_kernels_(new, torch.Generator().manual_seed(seed))
    fitting = _Fitting({start: torch.cat(maps) for start, maps in targets.items()})
    joined = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    with ExitStack() as hooks:
        for number, bottleneck in enumerate(fitted):
            if bottleneck.block is not None:
                keep = partial(fitting.keep_shortcut, number)
                hooks.enter_context(bottleneck.block.register_forward_pre_hook(keep))
            fit = partial(fitting.fit_, number, bottleneck)
            hooks.enter_context(bottleneck.conv.register_forward_pre_hook(fit))
        for module in new.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
        new(**as_read_by(new, joined))
    new.eval()
    return len(fitted)


def bottlenecks(model: PreTrainedModel, batch: Batch) -> tuple[list[Bottleneck], int]:
    """Return the linear bottlenecks of a model, and the number of values of its largest feature map.

    They are recognized by the tensors of a forward pass: which module returns what another one reads or adds.

    Args:
        model: in evaluation mode.
        batch: of images.

    Returns:
        The bottlenecks in the order of the forward pass; values of one image.
    """
    calls: list[Call] = []

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        if inputs and isinstance(inputs[0], torch.Tensor) and isinstance(output, torch.Tensor):
            calls.append((module, inputs[0], output))

    with ExitStack() as hooks:
        for module in model.modules():
            hooks.enter_context(module.register_forward_hook(record))
        model(**as_read_by(model, batch))
    candidates = (_bottleneck(*call, calls) for call in calls)
    return [each for each in candidates if each is not None], max((out[0].numel() for *_, out in calls), default=1)


def initialize_kernels_(model: nn.Module, draw: torch.Generator) -> None:
    """Set depthwise kernels, and those that read the image, to a random choice of four kernels of norm 1.

    These are a Gaussian, its first derivatives along height and width, and the identity. A kernel that reads the image
    combines the image's channels in one random direction.

    Args:
        model: is changed.
        draw: chooses the kernels and directions.
    """
    first = True
    for module in model.modules():
        if not isinstance(module, nn.Conv2d) or min(module.kernel_size) < 3:
            continue
        if first or module.groups == module.in_channels:
            y, x = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in module.kernel_size), indexing="ij")
            gaussian = torch.exp(-(x**2 + y**2) / (2 * (2 * KERNEL_STD) ** 2))
            identity = ((x**2 + y**2) == (x**2 + y**2).min()).float()
            kernels = torch.stack([k / k.norm() for k in (gaussian, gaussian * x, gaussian * y, identity)])
            choice = torch.randint(len(kernels), (module.out_channels,), generator=draw)
            direction = torch.randn(*module.weight.shape[:2], generator=draw)
            direction /= direction.norm(dim=1, keepdim=True)
            module.weight.copy_(kernels[choice][:, None] * direction[:, :, None, None])
        first = False


class _Fitting:
    """Fits each bottleneck when the rows reach it.

    Attributes:
        targets: feature maps of the original, by the number of the bottleneck that is fitted to them.
        residual: what the last bottlenecks leave unexplained of their target, in the coordinates of their channels and
            with the scale of their batch norm, [positions, channels].
        shortcuts: the tensor that is added to a bottleneck's output, by its number.
    """

    def __init__(self, targets: dict[int, torch.Tensor]) -> None:
        self.targets = targets
        self.residual = torch.zeros(0)
        self.shortcuts: dict[int, torch.Tensor] = {}

    def keep_shortcut(self, number: int, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.shortcuts[number] = inputs[0]

    def fit_(self, number: int, at: Bottleneck, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        rows = _rows(inputs[0])
        if at.block is None:
            target = functional.interpolate(self.targets.pop(number), at.grid, mode="bilinear")
            self._fit_to_target_(at, rows, _rows(target))
        else:
            self._fit_to_residual_(at, rows, _rows(self.shortcuts.pop(number)))

    def _fit_to_target_(self, at: Bottleneck, inputs: torch.Tensor, target: torch.Tensor) -> None:
        """Set the weights to the reduced-rank regression of `target` on `inputs`, both [positions, width]."""
        inputs, target = inputs - inputs.mean(0), target - target.mean(0)
        move = _regressed(inputs, target)
        predicted = inputs @ move
        directions, spread = _principal(predicted, at.conv.out_channels)
        directions = directions[:, spread > MIN_SPREAD * spread[0]]
        weight, predicted, self.residual = (move @ directions).T, predicted @ directions, target @ directions
        self.residual /= self.residual.std(0)
        at.norm.weight[: len(weight)] = (predicted / predicted.std(0) * self.residual).mean(0)
        missing = at.conv.out_channels - len(weight)
        if missing:  # the target has fewer directions than the bottleneck channels: add those that vary most
            basis = torch.linalg.qr(weight.T)[0]
            inputs -= inputs @ basis @ basis.T
            weight = torch.cat([weight, _principal(inputs, missing)[0].T])
        at.conv.weight.copy_(weight[:, :, None, None])

    def _fit_to_residual_(self, at: Bottleneck, inputs: torch.Tensor, shortcut: torch.Tensor) -> None:
        """Set the weights to the regression of what the shortcut leaves unexplained.

        Channels without a target get a scale of 0, so that they add nothing yet but can learn.
        """
        rank = self.residual.shape[1]
        missing = self.residual - shortcut[:, :rank]
        move = _regressed(inputs, missing)
        at.conv.weight[:rank] = move.T[:, :, None, None]
        at.norm.weight.zero_()
        at.norm.weight[:rank] = (inputs @ move).std(0)
        at.norm.bias[:rank] = missing.mean(0)


def _principal(rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the directions [width, count] in which centred rows vary most, and their standard deviations, falling."""
    values, vectors = torch.linalg.eigh(rows.T.double() @ rows.double())
    return vectors.flip(1)[:, :count].float(), values.flip(0)[:count].clamp_min(0).sqrt().float()


def _regressed(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the ridge regression of `y` on `x`, [inputs, outputs]."""
    parts = zip(x.tensor_split(4 * FOLDS), y.tensor_split(4 * FOLDS), strict=True)
    return fit_rows(parts, bias=True)[0].move


def _maps(model: PreTrainedModel, batch: Batch) -> list[torch.Tensor]:
    """Return hidden states as maps [batch, channels, height, width]; none where some have no such form."""
    states = getattr(model.eval()(**as_read_by(model, batch), output_hidden_states=True), "hidden_states", None) or ()
    maps = [as_map(state) for state in states]
    return [m.float() for m in maps if m is not None] if all(m is not None for m in maps) else []


def _rows(maps: torch.Tensor) -> torch.Tensor:
    """Return maps [batch, channels, height, width] as rows [positions, channels]."""
    return maps.movedim(1, -1).flatten(0, 2).float()


def _bottleneck(conv: nn.Module, inputs: torch.Tensor, output: torch.Tensor, calls: list[Call]) -> Bottleneck | None:
    """Return the linear bottleneck that a module begins; None where it begins none.

    Args:
        conv: any module.
        inputs: its input.
        output: its output.
        calls: of all modules of the same forward pass; inner modules come before those that contain them.
    """
    if not isinstance(conv, nn.Conv2d) or conv.kernel_size != (1, 1) or conv.groups != 1:
        return None
    norms = ((m, out) for m, x, out in calls if isinstance(m, nn.BatchNorm2d) and x is output)
    norm, scaled = next(norms, (None, output))
    if norm is None or conv.out_channels >= conv.in_channels:
        return None
    bottleneck = Bottleneck(conv, norm, None, (output.shape[2], output.shape[3]))
    containing = [call for call in calls if call[0] is not conv and any(m is conv for m in call[0].modules())]
    is_linear = False
    for module, module_input, module_output in containing:
        if module_output.shape == scaled.shape and torch.equal(module_output, scaled):
            is_linear = True
        elif module_output.shape == scaled.shape == module_input.shape and torch.allclose(
            module_output, scaled + module_input, atol=1e-5
        ):
            return bottleneck._replace(block=module)
        else:  # a module that begins with the convolution is itself a shortcut to which something is added
            return bottleneck if is_linear and module_input is not inputs else None
    return bottleneck if is_linear else None
